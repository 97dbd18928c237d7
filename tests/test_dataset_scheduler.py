"""Runs over data sets: each item is encoded once, across kills, failures and changed inputs."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from datasets import FakeEngine, fake_run, items, journal_lines, manifest, outputs

import vtok as package
from vtok.dataset.api import failed_items
from vtok.dataset.folder import DatasetFolder, Partition
from vtok.dataset.item import Fault, Item, Record
from vtok.dataset.maintenance import dataset_status, merge_dataset, verify_dataset
from vtok.dataset.options import SHARD_FORMATS, DatasetOptions
from vtok.dataset.worker import Task
from vtok.errors import OutputError, PartialFailure, UsageError

IDS = [f"deep/{number:02d}" for number in range(30)]
FORMATS = ("npy", *SHARD_FORMATS)


class Killed(BaseException):
    """Stands for the end of the process."""


def dies_after(count: int) -> FakeEngine:
    """An engine that ends the run after `count` items."""

    def on_item(id_: str) -> None:
        if len(engine.encoded) > count:
            raise Killed

    engine = FakeEngine(on_item=on_item, ahead=3)
    return engine


def faults(root: Path) -> list[tuple[str, str]]:
    return [(id_, fault) for id_, fault in verify_dataset(root) if fault is not None]


@pytest.mark.parametrize("to", FORMATS)
def test_repeatedly_killed_run_gives_the_same_bytes(tmp_path: Path, to: str) -> None:
    fake_run(tmp_path / "whole", items(IDS), to=to)
    encoded: list[str] = []
    for _ in range(100):
        engine = dies_after(4)
        try:
            shuffled = items(random.Random(len(encoded)).sample(IDS, len(IDS)))
            fake_run(tmp_path / "cut", shuffled, engine, to=to)
        except Killed:
            encoded += engine.encoded
            continue
        break
    encoded += engine.encoded
    assert len(engine.encoded) <= 5 < len(encoded)
    assert outputs(tmp_path / "cut") == outputs(tmp_path / "whole")
    assert [row["id"] for row in manifest(tmp_path / "cut")] == IDS
    # each kill repeats only the items that were running
    assert sorted(set(encoded)) == IDS
    assert len(encoded) <= len(IDS) + 3 * (len(encoded) // 4)
    assert faults(tmp_path / "cut") == []
    assert not list((tmp_path / "cut").rglob("*.part"))


@pytest.mark.parametrize("to", FORMATS)
def test_finished_run_encodes_nothing_again(tmp_path: Path, to: str) -> None:
    fake_run(tmp_path, items(IDS), to=to)
    before, lines = outputs(tmp_path), len(journal_lines(tmp_path))
    engine = FakeEngine()
    totals = fake_run(tmp_path, items(reversed(IDS)), engine, to=to, shard_size=7)
    assert (engine.encoded, totals.up_to_date, totals.todo) == ([], 30, 0)
    assert outputs(tmp_path) == before
    assert len(journal_lines(tmp_path)) == lines


def test_engine_is_not_started_if_nothing_is_to_be_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_run(tmp_path, items(IDS[:3]))
    monkeypatch.setattr(FakeEngine, "run", lambda self, tasks: pytest.fail("started"))
    assert fake_run(tmp_path, items(IDS[:3])).up_to_date == 3


class Forgetful(FakeEngine):
    """Gives no record for some items, and two for others."""

    def run(self, tasks: Iterator[Task]) -> Generator[Record, None, None]:
        for record in super().run(tasks):
            if not record["id"].endswith("7"):
                yield record
            if record["id"].endswith("5"):
                yield {**record, "status": "failed", "message": "duplicate"}


@pytest.mark.parametrize("to", FORMATS)
def test_missing_and_duplicate_records_of_an_engine(tmp_path: Path, to: str) -> None:
    totals = fake_run(tmp_path / "out", items(IDS), Forgetful(), to=to)
    assert (totals.done, totals.failed) == (27, 3)
    assert [row["id"] for row in manifest(tmp_path / "out")] == IDS
    missing = manifest(tmp_path / "out", "errors")
    assert [row["id"] for row in missing] == [id_ for id_ in IDS if id_.endswith("7")]
    assert {row["error"] for row in missing} == {"WorkerError"}
    fake_run(tmp_path / "out", items(IDS), to=to, retry_failed=True)
    fake_run(tmp_path / "whole", items(IDS), to=to)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


def test_reports_are_rewritten_only_if_outdated(tmp_path: Path) -> None:
    def written() -> tuple[int, list[str]]:
        path = tmp_path / "manifest.jsonl"
        return path.stat().st_mtime_ns, [row["id"] for row in manifest(tmp_path)]

    fake_run(tmp_path, items(IDS[:3]))
    first = written()
    fake_run(tmp_path, items(IDS[:3]))
    assert written() == first
    (tmp_path / "manifest.jsonl").write_text("")
    fake_run(tmp_path, items(IDS[:3]))
    assert written()[1] == first[1]
    (tmp_path / "errors.jsonl").unlink()
    fake_run(tmp_path, items(IDS[:3]))
    assert (tmp_path / "errors.jsonl").exists()
    fake_run(tmp_path, items(IDS[3:6]), partition=Partition(0, 1))
    assert written()[1] == IDS[:6]


@pytest.mark.parametrize("to", FORMATS)
def test_retried_items_get_their_place_in_the_shard(tmp_path: Path, to: str) -> None:
    bad = {IDS[0], IDS[5], IDS[29]}
    fake_run(tmp_path / "whole", items(IDS), to=to)
    root = tmp_path / "holes"
    totals = fake_run(root, items(IDS), FakeEngine(bad.__contains__), to=to)
    assert (totals.done, totals.failed) == (27, 3)
    assert {row["id"] for row in manifest(root, "errors")} == bad
    assert faults(root) == []
    engine = FakeEngine()
    assert fake_run(root, items(IDS), engine, to=to).failed_before == 3
    assert engine.encoded == []
    fake_run(root, items(IDS), engine, to=to, retry_failed=True)
    assert set(engine.encoded) == bad
    assert outputs(root) == outputs(tmp_path / "whole")
    assert manifest(root, "errors") == []
    assert {row["attempts"] for row in manifest(root) if row["id"] in bad} == {2}


@pytest.mark.parametrize("to", FORMATS)
def test_missing_and_damaged_files_are_found_and_restored(tmp_path: Path, to: str) -> None:
    fake_run(tmp_path, items(IDS), to=to)
    before = outputs(tmp_path)
    name = next(iter(before))
    (tmp_path / name).unlink()
    assert faults(tmp_path)
    fake_run(tmp_path, items(IDS), to=to)
    assert outputs(tmp_path) == before
    data = bytearray(before[name])
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    assert faults(tmp_path)
    (tmp_path / name).unlink()  # as the command says
    fake_run(tmp_path, items(IDS), to=to)
    assert outputs(tmp_path) == before


def test_growing_data_set_keeps_its_shards(tmp_path: Path) -> None:
    fake_run(tmp_path, items(IDS[::2]), to="tar", shard_size=5)
    before = outputs(tmp_path)
    fake_run(tmp_path, items(IDS), to="tar", shard_size=6)
    after = outputs(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == 3 + 3
    assert [row["id"] for row in manifest(tmp_path)] == IDS


def test_duplicate_id_is_a_fault_until_the_list_is_corrected(tmp_path: Path) -> None:
    twice = [*items(IDS[:3]), Item(IDS[1], "/nowhere/else.mp4"), *items([IDS[2]])]
    for _ in range(2):
        totals = fake_run(tmp_path, twice)
        assert (totals.items, totals.faults, totals.duplicates) == (2, 1, 1)
    (row,) = manifest(tmp_path, "errors")
    assert (row["id"], row["phase"]) == (IDS[1], "plan")
    assert row["message"].endswith(f"/nowhere/{IDS[1]}.mp4 and /nowhere/else.mp4")
    engine = FakeEngine()
    fake_run(tmp_path, items(IDS[:3]), engine)
    assert engine.encoded == [IDS[1]]
    assert manifest(tmp_path, "errors") == []


def test_fault_is_dropped_when_its_list_no_longer_has_it(tmp_path: Path) -> None:
    wrong = Fault("a.csv:3", "a.csv:3", "a.csv:3: has no input", "a.csv")
    fake_run(tmp_path, [*items(IDS[:1]), wrong], origins=("a.csv",))
    assert [row["id"] for row in manifest(tmp_path)] == ["a.csv:3", IDS[0]]
    fake_run(tmp_path, items(IDS[1:2]), origins=("b.csv",))
    assert len(manifest(tmp_path)) == 3
    fake_run(tmp_path, items(IDS[:1]), origins=("a.csv",))
    assert [row["id"] for row in manifest(tmp_path)] == IDS[:2]


def test_other_recipe_is_refused_or_encodes_everything_again(tmp_path: Path) -> None:
    fake_run(tmp_path, items(IDS))
    other = {"to": "npy", "stages": 3}
    with pytest.raises(UsageError, match=r"other options \(stages 2 -> 3\): give another folder"):
        fake_run(tmp_path, items(IDS), recipe=other)
    engine = FakeEngine()
    fake_run(tmp_path, items(IDS), engine, recipe=other, overwrite=True)
    assert engine.encoded == IDS


def test_data_set_of_another_version_is_refused(tmp_path: Path) -> None:
    fake_run(tmp_path, items(IDS[:1]))
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(UsageError, match="data set format 1, but this vtok reads and writes"):
        fake_run(tmp_path, items(IDS[:1]))


def test_second_run_on_one_folder_is_refused(tmp_path: Path) -> None:
    def second(id_: str) -> None:
        with pytest.raises(OutputError, match="another run works on it"):
            fake_run(tmp_path, items(IDS))
        with pytest.raises(OutputError, match="another run works on it"):
            fake_run(tmp_path, items(IDS), partition=Partition(0, 2))

    fake_run(tmp_path, items(IDS[:2]), FakeEngine(on_item=second))
    assert len(manifest(tmp_path)) == 2


def test_partitions_run_at_the_same_time_and_can_be_merged(tmp_path: Path) -> None:
    def second(id_: str) -> None:
        fake_run(tmp_path / "many", items(IDS), to="tar", partition=Partition(1, 3))
        with pytest.raises(OutputError, match="another run works on it"):
            fake_run(tmp_path / "many", items(IDS), to="tar", partition=Partition(0, 3))
        with pytest.raises(OutputError, match="another run works on it"):
            fake_run(tmp_path / "many", items(IDS), to="tar", partition=Partition(0, 2))

    fake_run(
        tmp_path / "many",
        items(IDS),
        FakeEngine(on_item=second),
        to="tar",
        partition=Partition(0, 3),
    )
    with pytest.raises(UsageError, match="partitions are missing: 0002-of-0003"):
        merge_dataset(tmp_path / "many")
    fake_run(tmp_path / "many", items(IDS), to="tar", partition=Partition(2, 3))
    assert merge_dataset(tmp_path / "many").done == len(IDS)
    assert [row["id"] for row in manifest(tmp_path / "many")] == IDS
    assert faults(tmp_path / "many") == []
    engine = FakeEngine()  # a run without partitions finds everything up to date
    assert fake_run(tmp_path / "many", items(IDS), engine, to="tar").up_to_date == len(IDS)
    assert engine.encoded == []


@pytest.mark.parametrize("to", ["npy", "memmap"])
def test_merge_copies_partitions_from_other_folders(tmp_path: Path, to: str) -> None:
    for index in range(2):
        fake_run(tmp_path / f"m{index}", items(IDS), to=to, partition=Partition(index, 2))
    assert merge_dataset(tmp_path / "m0", [tmp_path / "m1"]).done == len(IDS)
    assert merge_dataset(tmp_path / "m0", [tmp_path / "m1"]).done == len(IDS)
    assert faults(tmp_path / "m0") == []
    engine = FakeEngine()
    fake_run(tmp_path / "m0", items(IDS), engine, to=to)
    assert engine.encoded == []
    fake_run(tmp_path / "other", items(IDS), to=to, recipe={"to": to, "stages": 9})
    with pytest.raises(UsageError, match="made with other options"):
        merge_dataset(tmp_path / "m0", [tmp_path / "other"])


@pytest.mark.parametrize(("limit", "done"), [("3", 4), ("10%", 4), ("0", 1), ("100%", 30)])
def test_too_many_failures_stop_the_run(tmp_path: Path, limit: str, done: int) -> None:
    engine = FakeEngine(lambda id_: True, ahead=1)
    run = lambda: fake_run(tmp_path, items(IDS), engine, max_failures=limit)  # noqa: E731
    if done < 30:
        with pytest.raises(PartialFailure, match=f"{done} items failed, more than `max_failures`"):
            run()
    else:
        run()
    assert len(manifest(tmp_path, "errors")) == done


@pytest.mark.parametrize("text", ["x", "-1", "5 %%", "1e3", "%"])
def test_invalid_failure_limits_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="max_failures"):
        DatasetOptions(max_failures=text)


def test_status_can_be_read_during_a_run(tmp_path: Path) -> None:
    seen = []

    def look(id_: str) -> None:
        seen.append(dataset_status(tmp_path))

    bad = IDS[3].__eq__
    fake_run(tmp_path, items(IDS), FakeEngine(bad, on_item=look), to="tar")
    assert [status.done + status.failed for status in seen][::10] == [0, 8, 20]
    status = dataset_status(tmp_path)
    assert (status.done, status.failed, status.waiting, status.shards) == (29, 1, 0, 8)
    assert status.causes == {"decode: VideoError": 1}
    assert [item.id for item in failed_items(DatasetFolder(tmp_path))] == [IDS[3]]


def test_damaged_journal_lines_repeat_only_their_items(tmp_path: Path) -> None:
    fake_run(tmp_path, items(IDS))
    path = DatasetFolder(tmp_path).journals()[0]
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = b"\0" * (len(lines[4]) - 1) + b"\n"
    lines[7] = b"[1]\n"
    path.write_bytes(b"".join(lines)[:-9])
    engine = FakeEngine()
    fake_run(tmp_path, items(IDS), engine)
    assert len(engine.encoded) == 3
    assert [row["id"] for row in manifest(tmp_path)] == IDS


def test_ten_thousand_finished_items_are_up_to_date(tmp_path: Path) -> None:
    ids = [f"c{number:05d}" for number in range(10_000)]
    folder = DatasetFolder(tmp_path)
    fake_run(tmp_path, items(ids[:1]), to="tar")
    first = journal_lines(tmp_path)[1]
    hashes = dict.fromkeys(ids, first["sha256"])
    written = {"kind": "written", "shard": 0, "items": hashes, "files": {}}
    with folder.journals()[0].open("a") as file:
        for id_ in ids:
            file.write(json.dumps({**first, "id": id_}) + "\n")
        file.write(json.dumps({"kind": "shard", "shard": 0, "ids": ids}) + "\n")
        file.write(json.dumps({**written, "at": time.time()}) + "\n")
    engine = FakeEngine()
    assert fake_run(tmp_path, items(ids), engine, to="tar").up_to_date == 10_000
    assert engine.encoded == []
    assert len(manifest(tmp_path)) == 10_000


def test_lock_is_released_when_the_process_is_killed(tmp_path: Path) -> None:
    script = Path(__file__).parent / "datasets.py"
    command = [sys.executable, str(script), str(tmp_path / "set"), "npy", "1000000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parent.parent)}
    log = tmp_path / "log"
    with subprocess.Popen([*command, str(log)], env=environment) as process:
        while not (log.exists() and log.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(OutputError, match="another run works on it"):
            fake_run(tmp_path / "set", items(IDS[:1]))
        process.kill()
    assert fake_run(tmp_path / "set", items(IDS[:1])).done == 1


@pytest.mark.slow
@pytest.mark.parametrize("to", ["npy", "tar"])
def test_killed_processes_lose_and_repeat_nothing(tmp_path: Path, to: str) -> None:
    kills = int(os.environ.get("VTOK_KILLS", "8"))
    count = 50 * kills  # so that the last run has something to do
    log = tmp_path / "log"
    root = tmp_path / "killed"
    command = [sys.executable, str(Path(__file__).parent / "datasets.py"), root, to, count, log]
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parent.parent)}

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [str(word) for word in command], env=environment, stdout=subprocess.PIPE
        )

    delays = random.Random(to)
    for _ in range(kills):
        with start() as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delays.uniform(0, 0.3))
            process.kill()
    with start() as process:
        assert process.wait() == 0
    ids = [f"c{number:04d}" for number in range(count)]
    fake_run(tmp_path / "whole", items(ids), to=to)
    assert outputs(root) == outputs(tmp_path / "whole")
    assert [row["id"] for row in manifest(root)] == ids
    encoded = log.read_text().split()
    assert len(encoded) <= count + kills * 4
    assert faults(root) == []
