"""Videos inside parquet tables, as structs of bytes and path."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from videos import make_video

from vtok.dataset.item import Item, fetched, signature
from vtok.dataset.sources import Inputs, find_items
from vtok.errors import InputError

VIDEO = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def write_table(path: Path, rows: list[dict[str, object]], column: str = "video") -> Path:
    videos = pyarrow.array([row.pop(column) for row in rows], VIDEO)
    table = pyarrow.Table.from_pylist(rows).append_column(column, videos)
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    return path


def found(path: Path, **inputs: str) -> list[Item]:
    items = list(find_items(Inputs((str(path),), **inputs)))
    assert all(isinstance(item, Item) for item in items)
    return items  # type: ignore[return-value]


def contents(item: Item, scratch: Path) -> bytes:
    with fetched(item, scratch) as path:
        return path.read_bytes()


def test_bytes_and_paths_of_a_video_column(tmp_path: Path) -> None:
    (tmp_path / "outside.mp4").write_bytes(b"a file beside the table")
    rows: list[dict[str, object]] = [
        {"label": 0, "video": {"bytes": b"zero", "path": "a/zero.mp4"}},
        {"label": 1, "video": {"bytes": b"one", "path": None}},
        {"label": 2, "video": {"bytes": None, "path": "outside.mp4"}},
        {"label": 3, "video": {"bytes": b"three", "path": "three.webm"}},
        {"label": 4, "video": {"bytes": b"four", "path": "four.mp4"}},
    ]
    path = write_table(tmp_path / "train-0.parquet", rows)
    items = found(path)
    assert [item.id for item in items] == [
        *("train-0/a/zero", "train-0/row 1", "train-0/outside", "train-0/three", "train-0/four")
    ]
    assert [item.columns["label"] for item in items] == list(range(5))
    expected = [b"zero", b"one", b"a file beside the table", b"three", b"four"]
    assert [contents(item, tmp_path) for item in items] == expected
    assert len({signature(item) for item in items}) == 5
    assert [Item.from_json(item.to_json()) for item in items] == items


def test_times_and_ids_select_clips_of_embedded_videos(tmp_path: Path) -> None:
    video = {"bytes": b"x", "path": "v.mp4"}
    rows: list[dict[str, object]] = [
        {"id": "first", "start": 0.0, "end": 1.0, "film": dict(video)},
        {"id": "second", "start": 1.0, "end": 2.0, "film": dict(video)},
    ]
    path = write_table(tmp_path / "clips.parquet", rows, "film")
    items = found(path, input_column="film")
    assert [(item.id, item.start, item.end) for item in items] == [
        ("first", "0", "1"), ("second", "1", "2"),
    ]  # fmt: skip


def test_an_unused_video_column_is_listed_by_its_path(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"path": "a.mp4", "preview": {"bytes": b"x" * 1000, "path": "p.mp4"}}
    ]
    (item,) = found(write_table(tmp_path / "t.parquet", rows, "preview"))
    assert item.columns == {"preview": "p.mp4"}
    assert item.member is None


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (None, "has neither bytes nor a path"),
        ({"bytes": b"", "path": None}, "has neither bytes nor a path"),
        ({"bytes": None, "path": "gone.mp4"}, "cannot be fetched"),
    ],
)
def test_a_cell_without_a_video_is_one_clear_line(
    tmp_path: Path, video: dict[str, object] | None, message: str
) -> None:
    path = write_table(tmp_path / "t.parquet", [{"n": 1, "video": video}])
    (item,) = found(path)
    with pytest.raises(InputError, match=rf"^{path}!.*: {message}"):
        contents(item, tmp_path)


def test_embedded_videos_are_whole_files(tmp_path: Path) -> None:
    data = make_video(tmp_path / "clip.mp4", 12).read_bytes()
    path = write_table(tmp_path / "t.parquet", [{"n": 1, "video": {"bytes": data, "path": None}}])
    assert contents(found(path)[0], tmp_path) == data
