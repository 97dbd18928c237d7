"""Training runs: their files, how they resume, and how they recover from failures."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from training import Recorder, SyntheticLoader, synthetic_clips, tiny_config, tiny_data

from vtok.errors import InputError, OutputError, UsageError, VtokError
from vtok.evaluation.metrics import psnr
from vtok.models.checkpoint import load_checkpoint, save_checkpoint
from vtok.nn.tokenizer import VideoTokenizer
from vtok.training import trainer
from vtok.training.learner import Learner
from vtok.training.loader import default_workers
from vtok.training.metrics import measure
from vtok.training.sources import Source, find_sources, hold_out
from vtok.training.state import RunFolder, from_bytes, state_files
from vtok.training.trainer import RunData


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create two empty videos, whose clips are synthetic."""
    monkeypatch.setattr(
        RunData, "open_loader", lambda self, seed, skipped, *_: SyntheticLoader(seed, skipped)
    )
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).touch()
    return folder


def run(data: Path, out: Path, **fields: Any) -> Recorder:
    """Train a tiny model; returns its reports."""
    notes = Recorder()
    trainer.train([data], out, tiny_config(**fields), observer=notes, device="cpu")
    return notes


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the newest state of a run."""
    return from_bytes(state_files(out / "states")[0].read_bytes(), "state").tensors


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def log_steps(out: Path) -> list[int]:
    with (out / "log.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_run_writes_its_files(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    notes = run(data, out, ema=0.9)
    assert [report.step for report in notes.steps] == list(range(1, 9))
    assert [report.step for report in notes.validations] == [4, 8]
    assert set(notes.validations[-1].psnr) == {1, 2, 3}
    assert log_steps(out) == list(range(1, 9))
    assert [p.stem for p in state_files(out / "states")] == [
        "step-00000008", "step-00000006", "step-00000004",
    ]  # fmt: skip
    assert sorted(p.name for p in (out / "pictures").iterdir()) == [
        "step-00000004.png", "step-00000008.png",
    ]  # fmt: skip
    assert RunFolder(out).resolve_config(None, {}, accelerated=False) == tiny_config(ema=0.9)
    tokenizer, info = load_checkpoint(out / "model.safetensors")
    assert info.name == "run"
    kept = weights(out)
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(tensor, kept[f"averaged.{name}"])
    assert "too few videos" in " ".join(notes.lines)


def test_finished_run_can_be_extended(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run")
    notes = run(data, tmp_path / "run")
    assert not notes.steps
    assert "finished at step 8" in notes.lines[-1]
    notes = run(data, tmp_path / "run", steps=10)
    assert [report.step for report in notes.steps] == [9, 10]


def test_interrupted_run_ends_with_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"accumulate": 2, "ema": 0.9, "adversarial": 0.1, "adversarial_from": 3}
    run(data, tmp_path / "whole", **fields)
    step = Learner.step
    for last in (0, 3, 4, 7):

        def stop(self: Learner, number: int, *args: Any, last: int = last) -> Any:
            if number == last:
                raise RuntimeError("stop here")
            return step(self, number, *args)

        monkeypatch.setattr(Learner, "step", stop)
        with pytest.raises(RuntimeError):
            run(data, tmp_path / "stopped", **fields)
    monkeypatch.setattr(Learner, "step", step)
    notes = run(data, tmp_path / "stopped", **fields)
    assert notes.steps[0].step == 7  # from the state of step 6
    assert_same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    assert log_steps(tmp_path / "stopped") == list(range(1, 9))
    model = "model.safetensors"
    ours, theirs = (load_checkpoint(tmp_path / name / model)[1] for name in ("stopped", "whole"))
    assert ours.weights_sha256 == theirs.weights_sha256


def fail_at(monkeypatch: pytest.MonkeyPatch, *calls: int) -> list[int]:
    """Put NaN into the clips of some calls of `Learner.step`; returns the steps of all calls."""
    step, taken = Learner.step, []

    def poisoned(self: Learner, number: int, clips: Any, *args: Any) -> Any:
        if len(taken) in calls:
            clips = [clip * float("nan") for clip in clips]
        taken.append(number)
        return step(self, number, clips, *args)

    monkeypatch.setattr(Learner, "step", poisoned)
    return taken


def test_nan_rolls_back_and_changes_the_clips(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = fail_at(monkeypatch, 5)
    notes = run(data, tmp_path / "run")
    assert taken == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert [(alarm.kind, alarm.step) for alarm in notes.alarms] == [("not_finite", 5)]
    assert log_steps(tmp_path / "run") == list(range(1, 9))
    rates = {report.step: report.learning_rate for report in notes.steps}
    calm = {report.step: report.learning_rate for report in run(data, tmp_path / "calm").steps}
    assert rates[8] == pytest.approx(calm[8] / 2)
    state = from_bytes(state_files(tmp_path / "run" / "states")[0].read_bytes(), "state")
    assert (state.facts["retry"], state.facts["factor"]) == (1, 0.5)
    assert notes.steps[4].loss != notes.steps[5].loss  # step 5 twice, with other clips
    assert notes.steps[4].step == notes.steps[5].step == 5


def test_rolled_back_run_resumes_with_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 3)
        run(data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        fail_at(patch, 3)
        run(data, tmp_path / "stopped", steps=8)
        state_files(tmp_path / "stopped" / "states")[0].unlink()  # as if killed at step 7
    run(data, tmp_path / "stopped")
    assert_same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_three_failures_in_a_row_end_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = fail_at(monkeypatch, 3, 5, 7)
    with pytest.raises(
        VtokError, match=r"no finite loss after step 3 in 3 attempts.*learning_rate"
    ):
        run(data, tmp_path / "run")
    assert taken == [0, 1, 2, 3, 2, 3, 2, 3]
    assert state_files(tmp_path / "run" / "states")[0].stem == "step-00000002"


def test_damaged_state_costs_steps_only(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run")
    state_files(tmp_path / "run" / "states")[0].write_bytes(b"damaged")
    notes = run(data, tmp_path / "run")
    assert [report.step for report in notes.steps] == [7, 8]
    assert "step-00000008.safetensors" in notes.lines[0]
    run(data, tmp_path / "whole")
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_run_resumes_after_a_full_disk(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.parent.name == "states" and b'step\\": 6' in content:
            raise OSError(28, "No space left on device")
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=r"step-00000006.*No space left on device"):
            run(data, tmp_path / "run")
    assert [report.step for report in run(data, tmp_path / "run").steps] == [5, 6, 7, 8]


def test_folder_is_locked(data: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.opened(tiny_config()), pytest.raises(OutputError, match="another run is using it"):
        run(data, tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file.*cannot be created"):
        run(data, tmp_path / "file")


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.opened(tiny_config()):
        half = folder.states / ".vtok-0123.part"
        half.touch()
    with folder.opened(tiny_config()):
        assert not half.exists()


def test_config_may_change_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SyntheticLoader, "middle_clips", lambda *_: find_sources([tmp_path / "no"]))
        with pytest.raises(InputError):
            run(data, tmp_path / "run", seed=7)
    folder = RunFolder(tmp_path / "run")
    mended = folder.resolve_config(None, {"seed": 8}, accelerated=False)
    assert mended == tiny_config(seed=8)
    run(data, tmp_path / "run", seed=8)
    run(data, tmp_path / "other", seed=8)
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "other"))
    with pytest.raises(UsageError, match="seed"):
        folder.resolve_config(None, {"seed": 9}, accelerated=False)


def test_changed_data_are_reported(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run")
    (data / "c.mp4").touch()
    assert "the data differ" in run(data, tmp_path / "run", steps=9).lines[0]


def test_run_starts_from_a_checkpoint(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    narrow = VideoTokenizer.from_config(tiny_config().tokenizer)
    save_checkpoint(tmp_path / "init.safetensors", narrow, "init")
    model = {**tiny_config().model, "stage_plan": (0, 1, 2)}
    fields = {"init": str(tmp_path / "init.safetensors"), "model": model, "ema": 0.9}
    notes = run(data, tmp_path / "run", steps=2, keep=9, **fields)
    assert "widened: encoder." in notes.lines[0]
    first = from_bytes(state_files(tmp_path / "run" / "states")[-1].read_bytes(), "first")
    name = "decoder.layers.0.conv.weight"
    for prefix in ("model", "averaged"):
        tensor = first.tensors[f"{prefix}.{name}"][:, :6]
        assert torch.equal(tensor, narrow.state_dict()[name])


def test_no_data_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no video or photo"):
        run(tmp_path / "empty", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match=r"device.spam"):
        trainer.train([tiny_data(tmp_path / "data")], tmp_path / "run", tiny_config(),
                      observer=Recorder(), device="spam")  # fmt: skip


def test_videos_are_held_out_by_name() -> None:
    def sources(count: int, where: str) -> list[Source]:
        videos = [Source(f"{where}/{n}.mp4", Path(f"{where}/{n}.mp4"), None, "video")
                  for n in range(count)]  # fmt: skip
        return [*videos, Source(f"{where}/p.png", Path(f"{where}/p.png"), None, "photo")]

    assert hold_out(sources(19, "a")) == (sources(19, "a"), [])
    for count, expected in ((20, 2), (46, 4), (500, 8)):
        learned, aside = hold_out(sources(count, "a"))
        assert len(aside) == expected
        assert {s.name for s in learned} | {s.name for s in aside} == {
            s.name for s in sources(count, "a")
        }
        assert len(learned) + len(aside) == count + 1
        elsewhere = hold_out(sources(count, "b"))[1]
        assert [s.path.name for s in elsewhere] == [s.path.name for s in aside]


def test_validation_psnr_equals_that_of_evaluation() -> None:
    torch.manual_seed(0)
    model = VideoTokenizer.from_config(tiny_config().tokenizer)
    clips = synthetic_clips(0, range(2))
    measured = measure(model, clips)
    assert model.training
    for stages in (1, 3):
        recon = model.eval().reconstruct(clips, num_stages=stages)
        frames, originals = (
            ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()
            for x in (recon.detach(), clips)
        )
        expected = [psnr(f, o) for f, o in zip(frames, originals, strict=True)]
        assert measured.psnr[stages] == pytest.approx(expected, abs=1e-6)
        assert torch.allclose(measured.frames[stages], recon[:, :, 2], atol=1e-6)
    assert measured.means()[1] == pytest.approx(sum(measured.psnr[1]) / 2)
    codes = model.encode(clips, quantize=True, num_stages=1)
    assert measured.code_usage == pytest.approx(len(codes.unique()) / 64)


def test_default_workers_leave_a_core_for_training() -> None:
    assert default_workers(1000) == 1
    assert 1 <= default_workers(1) <= 16
