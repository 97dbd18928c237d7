"""Sources: every video and photo is found once, in order; families share their probability."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vtok.errors import InputError
from vtok.training.sources import Source, chances, find_sources, source_file


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def make_shard(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


def test_folder_is_searched_recursively(tmp_path: Path) -> None:
    make_files(tmp_path, "b.mp4", "a/x.MKV", "a/y.jpg", "notes.txt", ".hidden.mp4", ".git/z.png")
    sources = find_sources([tmp_path])
    assert [(s.name, s.kind) for s in sources] == [
        (f"{tmp_path}/a/x.MKV", "video"),
        (f"{tmp_path}/a/y.jpg", "photo"),
        (f"{tmp_path}/b.mp4", "video"),
    ]
    assert all(source.member is None for source in sources)


def test_file_named_twice_is_one_source(tmp_path: Path) -> None:
    make_files(tmp_path, "a.mp4", "b.png")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    names = [tmp_path / "a.mp4", tmp_path, f"{tmp_path}/*.mp4", tmp_path / "." / "b.png"]
    assert [s.path.name for s in find_sources(names)] == ["a.mp4", "b.png"]


def test_shards_are_searched(tmp_path: Path) -> None:
    shard = make_shard(
        tmp_path / "0.tar", {"2/b.mp4": b"2", "a.png": b"1", "._a.png": b"", "c": b""}
    )
    for given in (shard, tmp_path):
        sources = find_sources([given])
        assert [s.name for s in sources] == [f"{shard}!2/b.mp4", f"{shard}!a.png"]
        assert [s.member for s in sources] == ["2/b.mp4", "a.png"]
        assert [s.kind for s in sources] == ["video", "photo"]


def test_member_is_unpacked_while_in_use(tmp_path: Path) -> None:
    content = bytes(range(256)) * 99
    shard = make_shard(tmp_path / "0.tar", {"../../up.mp4": content})
    (source,) = find_sources([shard])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with source_file(source, scratch) as path:
        assert path.parent == scratch
        assert path.suffix == ".mp4"
        assert path.read_bytes() == content
    assert list(scratch.iterdir()) == []


def test_truncated_shard_gives_its_complete_members(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "0.tar", {"a.mp4": b"a" * 2000, "b.mp4": b"b" * 2000})
    with shard.open("rb+") as file:
        file.truncate(512 + 2048 + 512 + 100)
    a, b = find_sources([shard])
    with source_file(a, tmp_path) as path:
        assert path.read_bytes() == b"a" * 2000
    with pytest.raises(InputError, match=r"0\.tar!b\.mp4: .*unpacked"), source_file(b, tmp_path):
        pass
    assert not list(tmp_path.glob("member-*"))


def test_member_larger_than_its_shard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    header = tarfile.TarInfo("a.mp4")
    header.size = 2**40
    path.write_bytes(header.tobuf() + bytes(10240))
    source = Source("a", path, "a.mp4", "video")
    with pytest.raises(InputError, match="a: "), source_file(source, tmp_path):
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "missing: no such file or folder"),
        ("*.mov", r"\*\.mov: no video or photo in it"),
        ("folder", "folder: no video or photo in it"),
        ("notes.txt", r"notes\.txt: no video or photo in it \(.*\.mp4.* and .*\.jpg.*\)"),
        ("broken.tar", r"broken\.tar: not a readable tar file"),
        ("empty.tar", r"empty\.tar: no video or photo in it"),
    ],
)
def test_input_without_sources_is_named(tmp_path: Path, name: str, message: str) -> None:
    make_files(tmp_path, "good.mp4", "notes.txt", "broken.tar", "folder/notes.txt")
    make_shard(tmp_path / "empty.tar", {})
    with pytest.raises(InputError, match=message) as caught:
        find_sources([tmp_path / "good.mp4", tmp_path / name])
    assert "\n" not in str(caught.value)


def test_no_input_is_an_input_error() -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        find_sources([])


def sources_named(*names: str) -> list[Source]:
    return [Source(name, Path(name), None, "video") for name in names]


def test_family_weight_is_the_root_of_its_size() -> None:
    alike = [f"all/asl__{number}.mkv" for number in range(16)]
    shares = chances(sources_named("all/sea__ocean.mp4", *alike))
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == pytest.approx(1 / 5)  # against 16 ** 0.5 of the others together
    assert shares[1:] == pytest.approx(np.full(16, 1 / 20))


def test_folders_and_shards_are_families() -> None:
    shares = chances(
        sources_named("run/1.mp4", "run/2.mp4", "run/3.mp4", "run/4.mp4", "jump/1.mp4")
    )
    assert shares == pytest.approx([1 / 6] * 4 + [1 / 3])
    shard = Path("0.tar")
    members = [Source(f"0.tar!{m}", shard, m, "video") for m in ("a/1.mp4", "a/2.mp4", "b/1.mp4")]
    assert chances(members)[2] == pytest.approx(1 / (1 + 2**0.5))


def test_folder_of_unrelated_clips_is_sampled_evenly() -> None:
    shares = chances(sources_named(*(f"clips/{number}.mp4" for number in range(7))))
    assert shares == pytest.approx(np.full(7, 1 / 7))
