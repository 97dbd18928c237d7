"""A Ray cluster of this machine as the engine: the same bytes, and no clip that vanishes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from commands import tiny_checkpoint
from datasets import manifest, outputs
from videos import make_video

from vtok.dataset.api import DatasetOptions, codec_options, encode_dataset
from vtok.dataset.entry import Entry
from vtok.dataset.ray_engine import RayEngine
from vtok.dataset.sources import Inputs
from vtok.dataset.work import Settings, Task

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as exc:  # it wants half a minute's worth of a free machine
        pytest.skip(f"Ray cannot be started here: {exc}")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> DatasetOptions:
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("model"))
    return DatasetOptions(to="tar", model=str(checkpoint), shard_size=2, workers=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        make_video(folder / f"{number}.mp4", 5 + 4 * number)
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


def test_the_same_bytes_as_without(
    cluster: None, options: DatasetOptions, videos: Path, tmp_path: Path
) -> None:
    for engine in ("local", "ray"):
        how = replace(options, engine=engine)
        totals = encode_dataset(Inputs([str(videos)]), tmp_path / engine, options=how)
        assert (totals.done, totals.failed) == (4, 1)
    assert outputs(tmp_path / "ray") == outputs(tmp_path / "local")
    (row,) = manifest(tmp_path / "ray", "errors")
    assert (row["id"], row["stage"], row["error"]) == ("bad", "decode", "VideoError")


class Killing(RayEngine):
    """An engine whose first actors are killed when they are given something to do."""

    kills = 0

    def _start_actor(self, gpus: int) -> object:
        actor = super()._start_actor(gpus)
        if self.kills:
            self.kills -= 1
            ray.kill(actor)
        return actor


@pytest.mark.parametrize(("kills", "failed"), [(1, 0), (2, 1)])
def test_actors_that_die_take_no_clip_along(
    cluster: None, options: DatasetOptions, videos: Path, tmp_path: Path, kills: int, failed: int
) -> None:
    settings = Settings(codec_options(options), tmp_path, tmp_path, tmp_path)
    engine = Killing(replace(options, workers=1), settings, None)
    engine.kills = kills
    tasks = [
        Task(Entry(str(number), str(videos / f"{number}.mp4")), tmp_path / str(number), True)
        for number in range(3)
    ]
    records = list(engine.run(iter(tasks)))
    assert sorted(record["id"] for record in records) == ["0", "1", "2"]
    assert [record["status"] for record in records].count("failed") == failed
    for record in records:
        if record["status"] == "failed":
            assert "its worker died 2 times" in record["message"]
