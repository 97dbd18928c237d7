"""Items from folders, globs, lists, tables, tar shards and URLs, valid and invalid."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from vtok._times import Part
from vtok.dataset.folder import Partition, parse_partition
from vtok.dataset.item import (
    Fault,
    Item,
    digest,
    fetched,
    file_name,
    make_item,
    parse_seconds,
    signature,
)
from vtok.dataset.sources import Inputs, find_items
from vtok.errors import InputError, UsageError


def found(*names: str | Path, **inputs: Any) -> list[Item | Fault]:
    every = find_items(Inputs(tuple(map(str, names)), **inputs))
    return sorted(every, key=lambda item: item.id)


def ids(*names: str | Path, **inputs: Any) -> list[str]:
    return [item.id for item in found(*names, **inputs)]


def messages(items: list[Item | Fault]) -> list[str]:
    return [item.message for item in items if isinstance(item, Fault)]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode(errors="surrogateescape"))


def test_folder_with_circular_links(tmp_path: Path) -> None:
    touch(tmp_path, "in/z.mp4", "in/sub/a.b.MKV", "in/notes.txt", "in/.hidden/x.mp4", "far/y.mp4")
    touch(tmp_path, "in/out/made.mp4")
    (tmp_path / "in/sub/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/link").symlink_to(tmp_path / "far")
    (tmp_path / "in/self.mp4").symlink_to("self.mp4")
    (tmp_path / "in/gone.mp4").symlink_to("nowhere")
    (tmp_path / "in/folder.mp4").mkdir()
    assert ids(tmp_path / "in", skip=tmp_path / "in/out") == [
        "gone", "link/y", "self", "sub/a.b", "z",
    ]  # fmt: skip
    with pytest.raises(InputError, match="no video in it"):
        found(tmp_path / "in/folder.mp4")
    with pytest.raises(InputError, match="no such file or folder"):
        found(tmp_path / "nowhere")


def test_ids_of_files_and_globs_are_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/x.mp4", "b/x.mp4", "c[1].mp4")
    monkeypatch.chdir(tmp_path)
    assert ids("./a/x.mp4", "**/x.mp4", "c[1].mp4") == ["a/x", "a/x", "b/x", "c[1]"]
    absolute = ids(tmp_path / "a/x.mp4")[0]
    assert f"/{absolute}.mp4" == str(tmp_path / "a/x.mp4")


@pytest.mark.parametrize(
    ("data", "zero", "expected"),
    [
        (b"a.mp4\r\n\nb c.mp4\n", False, ["a", "b c"]),
        (b"a.mp4\0b\nc.mp4\0", True, ["a", "b\nc"]),
        (b"\xff.mp4", True, ["%FF"]),
        (b"", True, []),
        (b"x" * 100_000 + b".mp4\0y.mp4", True, ["x" * 100_000, "y"]),
    ],
)
def test_lists(tmp_path: Path, data: bytes, zero: bool, expected: list[str]) -> None:
    path = tmp_path / "list"
    path.write_bytes(data)
    assert ids(lists=[str(path)], zero=zero) == expected
    assert ids(lists=[io.BytesIO(data)], zero=zero) == expected


def test_invalid_lists(tmp_path: Path) -> None:
    (fault,) = found(lists=[io.BytesIO(b"a.mp4\0b.mp4\0")])
    assert messages([fault])[0].endswith("do NULs end the names of this list?")
    with pytest.raises(InputError, match="none: cannot be read"):
        found(lists=[str(tmp_path / "none")])


ROWS: list[dict[str, Any]] = [
    {"id": "a", "path": "v/1.mp4", "start": "0", "end": "2.5", "caption": "x, y"},
    {"id": "b", "path": "/abs/2.mp4", "start": "1:02:03.5", "end": "", "caption": ""},
    {"id": "c", "path": "v/1.mp4", "start": "3", "end": "2", "caption": ""},
    {"id": "d", "path": "", "start": "", "end": "", "caption": ""},
    {"id": "e", "path": "v/1.mp4", "start": "-1", "end": "", "caption": ""},
    {"id": "", "path": "v/1.mp4", "start": "", "end": "", "caption": ""},
]


def write_table(path: Path) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        separator = {".csv": ",", ".tsv": "\t"}[path.suffix]
        cells = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
        path.write_text(
            "".join(separator.join(f'"{cell}"' for cell in row) + "\r\n" for row in cells)
        )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clips{suffix}"
    write_table(path)
    items = found(path)
    good = {item.id: item for item in items if isinstance(item, Item)}
    assert good.keys() == {"a", "b"}
    first, second = good["a"], good["b"]
    assert (first.source, first.part) == (f"{tmp_path}/v/1.mp4", Part(0, 2.5))
    assert (second.source, second.part) == ("/abs/2.mp4", Part(3723.5))
    assert first.columns == {"caption": "x, y"}
    said = "\n".join(sorted(messages(items)))
    for words in ("ends before it begins", "has no input", "time '-1'", "has no id"):
        assert words in said
    assert Item.from_json(first.to_json()) == first


def test_column_names_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("key,where,from,to\nk,a.mp4,1,2\n")
    columns = {"id_column": "key", "start_column": "from", "end_column": "to"}
    (entry,) = found(path, input_column="where", **columns)
    assert isinstance(entry, Item)
    assert (entry.id, entry.start, entry.end, entry.columns) == ("k", "1", "2", {})
    with pytest.raises(UsageError, match=r"no column input, path, video .* but key, where, from"):
        found(path)
    with pytest.raises(
        UsageError, match=r"start_column=x: expected a column of .*which has key, where"
    ):
        found(path, input_column="where", start_column="x")


def test_ids_are_derived_if_a_table_has_none(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_text(
        '{"path": "a/b.mp4"}\n{"path": "a/b.mp4", "start": 1.5, "end": 2}\n\n{"x": 1}\n'
    )
    with pytest.raises(UsageError, match="but x"):
        found(path)
    path.write_text('{"path": "a/b.mp4"}\nnonsense\n{"path": "a/b.mp4", "start": 1.5, "end": 2}\n')
    assert ids(path) == [f"{path}:2", "a/b", "a/b@1.5-2"]


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.parquet", b"PAR1 not"), ("a.tar", b"not a tar"), ("a.csv", b"path,\x00\n")],
)
def test_invalid_tables_and_shards(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises((InputError, UsageError), match=name):
        found(tmp_path / name)


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as shard:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))


def test_companions_in_a_shard_become_columns(tmp_path: Path) -> None:
    path = tmp_path / "s1.tar"
    members = {
        "a.mp4": b"video a", "a.json": b'{"label": 3}', "a.txt": b"a cat", "a.jpg": b"no",
        "../../b.x.mp4": b"video b", "c.json": b"[]", "._d.mp4": b"",
    }  # fmt: skip
    write_shard(path, members)
    first, second = sorted(found(path), key=lambda item: item.id, reverse=True)
    assert isinstance(first, Item)
    assert isinstance(second, Item)
    assert (first.id, first.columns) == ("s1/a", {"label": 3, "txt": "a cat"})
    assert second.id == "s1/../../b"
    assert not file_name(second.id).startswith("..")
    with fetched(first, tmp_path) as file:
        assert file.read_bytes() == b"video a"
        assert file.suffix == ".mp4"
    assert not file.exists()
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"video b") - 100])
    items = found(path)
    assert [item.id for item in items if isinstance(item, Item)] == ["s1/a"]


def test_urls(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    for name in ("/set/x/a.mp4", "/set/b.mp4", "/set/notes.txt"):
        files.pipe(name, name.encode())
    files.pipe("/set/list.csv", b"id,input,start\nq,x/a.mp4,1\nr,memory://set/b.mp4,\n")
    shard = tmp_path / "s.tar"
    write_shard(shard, {"m.mp4": b"inside"})
    files.pipe("/shards/s.tar", shard.read_bytes())
    assert ids("memory://set/x") == ["a"]
    assert ids("memory://set/*.mp4") == ["b"]
    assert ids("memory://set/b.mp4") == ["set/b"]
    first, second = found("memory://set/list.csv")
    assert isinstance(first, Item)
    assert isinstance(second, Item)
    assert second.source == "memory://set/b.mp4"
    for item, data in ((first, b"/set/x/a.mp4"), (found("memory://shards/s.tar")[0], b"inside")):
        assert isinstance(item, Item)
        with fetched(item, tmp_path) as path:
            assert path.read_bytes() == data
            assert len(digest(item, path)) == 64
        before = signature(item)
        assert before == signature(item)
    files.pipe("/shards/s.tar", shard.read_bytes() + b"\0")
    assert signature(item) != before
    with pytest.raises(InputError, match="no such file"):
        found("memory://nowhere/a.mp4")
    with pytest.raises((InputError, UsageError), match="nonsense://"):
        found("nonsense://a.mp4")


@pytest.mark.parametrize(
    ("id_", "name"),
    [
        ("a/b", "a/b"),
        ("../x", "%2E./x"),
        ("/etc/passwd", "%/etc/passwd"),
        ("a//b", "a/%/b"),
        (".", "%2E"),
        (".vtok/x", "%2Evtok/x"),
        ("a\nb", "a%0Ab"),
        ("50%", "50%25"),
        ("ünï 東", "ünï 東"),
        ("a.b.c", "a.b.c"),
    ],
)
def test_file_names_stay_inside_the_folder(tmp_path: Path, id_: str, name: str) -> None:
    assert file_name(id_) == name
    assert "." not in file_name(id_, dots=False)
    path = tmp_path / file_name(id_)
    assert tmp_path in Path(os.path.normpath(path)).parents


def test_long_names_are_cut_and_stay_unique() -> None:
    names = {file_name("é" * 300 + end) for end in ("a", "b")}
    assert len(names) == 2
    assert max(len(name.encode()) for name in names) <= 200


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), (float("nan"), None), (1.5, "3/2"), ("01:00", "60"), (0, "0")],
)
def test_times(value: Any, seconds: str | None) -> None:
    assert parse_seconds(value) == seconds


@pytest.mark.parametrize("value", ["x", "-1", "1e99", "1:2:3:4", "inf", True, "9" * 30])
def test_invalid_times(value: Any) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_seconds(value)


def test_ids_are_valid_text() -> None:
    entry = make_item(None, "x", name="a\udcff\0\ud800")
    assert entry.id == "a%FF%00%00"
    entry.id.encode()


SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "8"}


@pytest.mark.parametrize(
    ("text", "environment", "partition"),
    [
        (None, {}, Partition()),
        ("0/8", {}, Partition(0, 8)),
        ("auto", SLURM, Partition(6, 8)),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_STEP": "2"}, Partition(3, 8)),
        ("auto/9", {"JOB_COMPLETION_INDEX": "8"}, Partition(8, 9)),
    ],
)
def test_partitions(text: str | None, environment: dict[str, str], partition: Partition) -> None:
    assert parse_partition(text, environment) == partition


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("8/8", {}), ("1", {}), ("a/b", {}), ("auto", {}), ("auto", {"JOB_COMPLETION_INDEX": "1"}),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "x"}), ("auto/3", SLURM), ("0/0", {}),
    ],
)  # fmt: skip
def test_invalid_partitions(text: str, environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="partition="):
        parse_partition(text, environment)


def test_partitions_are_disjoint_and_balanced() -> None:
    names = [f"clip {number}" for number in range(500)]
    parts = [{name for name in names if Partition(index, 7).has(name)} for index in range(7)]
    assert sum(map(len, parts)) == 500
    assert set.union(*parts) == set(names)
    assert min(map(len, parts)) > 40
