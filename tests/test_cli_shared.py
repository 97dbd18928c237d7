"""Options as dataclasses, and start-up of commands that load a model."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import pytest
import typer
from commands import tiny_checkpoint, vtok
from typer.main import get_command
from typer.testing import CliRunner
from videos import make_video

from vtok.cli import console, failures
from vtok.cli.app import app as vtok_app
from vtok.cli.encode import expect_video
from vtok.cli.options import expand_options
from vtok.errors import CodeFileError, OptionError, UsageError
from vtok.evaluation.evaluate import EvalOptions, Part
from vtok.pipeline.options import CutOptions, DecodeOptions, DumpOptions, EncodeOptions
from vtok.video.decoder_process import Decoder, DecodingChild
from vtok.video.reader import VideoReader


@dataclass(frozen=True)
class Spam:
    """Two options."""

    eggs: Annotated[int, typer.Option("--eggs", help="How many.")] = 3
    ham: Annotated[bool, typer.Option("--ham")] = False


FEWER = Spam(eggs=1)


@expand_options
def spam(
    name: str,
    *,
    own: Annotated[str, typer.Option("--own")] = "x",
    spam: Spam,
    last: Annotated[int, typer.Option("--last")] = 0,
) -> None:
    """Cook."""
    typer.echo(f"{name} {own} {spam} {last}")


@expand_options
def fewer(*, spam: Spam = FEWER) -> None:
    """Cook less."""
    typer.echo(spam)


def run(*arguments: str) -> str:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(spam)
    app.command()(fewer)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_dataclass_expands_to_its_fields() -> None:
    assert run("spam", "a") == "a x Spam(eggs=3, ham=False) 0\n"
    asked = run("spam", "a", "--ham", "--last", "2", "--eggs", "7", "--own", "y")
    assert asked == "a y Spam(eggs=7, ham=True) 2\n"
    assert run("fewer") == "Spam(eggs=1, ham=False)\n"
    assert run("fewer", "--eggs", "2") == "Spam(eggs=2, ham=False)\n"


def test_help_lists_the_fields_in_place() -> None:
    text = run("spam", "--help")
    places = [text.index(option) for option in ("--own", "--eggs", "--ham", "--last")]
    assert places == sorted(places)
    assert "Cook." in text
    assert "How many.  [default: 3]" in text


@pytest.fixture
def encode_flags() -> Iterator[None]:
    """Flags as if `vtok encode` ran."""
    failures.use_flags(get_command(vtok_app).commands["encode"].params)
    yield
    failures.use_flags(())


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        ("num_stages", "--stages"),
        ("num_bits", "--bits"),
        ("start_seconds", "--start"),
        ("duration_seconds", "--duration"),
        ("timeout_seconds", "--timeout"),
        ("dtype", "--dtype"),
        ("min_psnr", "--min-psnr"),
        ("effort", "--effort"),
        ("hysteresis", "--hysteresis"),
    ],
)
def test_option_errors_name_the_flag(field: str, flag: str, encode_flags: None) -> None:
    found = failures.as_vtok_error(OptionError(field, 0, "1 or more with `num_tokens`"))
    assert str(found) == f"{flag} 0: expected 1 or more with --num-tokens"
    assert type(found) is UsageError


def test_messages_name_flags_of_the_running_command(encode_flags: None) -> None:
    error = UsageError("`num_stages` and `num_bits` exclude each other, unlike `steps`")
    assert str(failures.as_vtok_error(error)) == (
        "--stages and --bits exclude each other, unlike `steps`"
    )
    found = failures.as_vtok_error(CodeFileError("a.vtok: pass its file as `model`"))
    assert (type(found), str(found)) == (CodeFileError, "a.vtok: pass its file as --model")


def test_keys_that_are_no_options_stay_as_they_are(encode_flags: None) -> None:
    error = OptionError("batch", 0, "1 or more")
    assert str(failures.as_vtok_error(error)) == "batch=0: expected 1 or more"


def test_failures_report_flags_as_json(
    encode_flags: None, capsys: pytest.CaptureFixture[str]
) -> None:
    several = failures.Failures(2, as_json=True)
    for name in "ab":
        with several.catch(name, input=name):
            raise OptionError("num_stages", 9, "1 to 8")
    out, err = capsys.readouterr()
    assert [json.loads(line)["message"] for line in out.splitlines()] == [
        "--stages 9: expected 1 to 8"
    ] * 2
    assert err == "error: --stages 9: expected 1 to 8\n" * 2
    with pytest.raises(UsageError, match=r"^2 of 2 inputs failed$"):
        several.raise_if_any()


def test_option_fields_have_flags_of_their_name() -> None:
    """Fields of option classes are parameters of the command, so errors can name the flag."""
    internal = {"to", "overwrite", "codec", "manner", "part"}
    negated = {"no_audio": "audio"}
    commands = get_command(vtok_app).commands
    for name, kind in (
        ("encode", EncodeOptions),
        ("decode", DecodeOptions),
        ("cut", CutOptions),
        ("dump", DumpOptions),
        ("eval", EvalOptions),
        ("eval", Part),
    ):
        params = {param.name for param in commands[name].params}
        params |= {negated[param] for param in params & set(negated)}
        missing = {field.name for field in fields(kind)} - params - internal
        assert missing <= {"only_shrink", "crop"}, f"vtok {name}"


@pytest.mark.parametrize(("cores", "word"), [(1, "PASSIVE"), (4, "PASSIVE"), (5, None)])
def test_idle_threads_sleep_on_few_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, word: str | None
) -> None:
    monkeypatch.setattr(console, "_cores", lambda: cores)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    console.spare_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == word
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    console.spare_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_video_and_wait_policy_come_before_torch(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 5)
    tiny_checkpoint(tmp_path)
    code = """if True:
        import sys
        from vtok.cli import console
        from vtok.cli.app import app
        from vtok.video.decoder_process import DecodingChild
        request, spare = DecodingChild.request, console.spare_cores
        def noted(what, function):
            def call(*given):
                print(what, "torch" in sys.modules, file=sys.stderr)
                return function(*given)
            return call
        DecodingChild.request = noted("request", request)
        console.spare_cores = noted("spare", spare)
        app(["encode", "a.mp4", "-q", "--model", "tiny.safetensors"])
    """
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    # the second request is that for the sound
    assert made.stderr.split("\n") == ["request False", "spare False", "request True", ""]
    assert (tmp_path / "a.vtok").stat().st_size


def test_one_process_decodes_all_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, start = [], DecodingChild.__init__
    for name in "abc":
        make_video(tmp_path / f"{name}.mp4", 5)
    model = tiny_checkpoint(tmp_path)

    def noted(self: DecodingChild, *given: object) -> None:
        started.append(self)
        start(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(DecodingChild, "__init__", noted)
    result = vtok("encode", tmp_path, "-o", tmp_path / "codes", "--model", model)
    assert result.exit_code == 0, result.output
    assert len(started) == 1
    assert not started[0].is_alive()
    assert len(list((tmp_path / "codes").glob("*.vtok"))) == 3


def test_expect_video_ignores_missing_files_and_pipes(tmp_path: Path) -> None:
    options = EncodeOptions(start_seconds=0.1, duration_seconds=0.2, size="32")
    with Decoder() as decoder:
        expect_video(tmp_path / "none.mp4", options, decoder)
        os.mkfifo(tmp_path / "pipe.mp4")
        expect_video(tmp_path / "pipe.mp4", options, decoder)
        assert decoder._child is None
        path = make_video(tmp_path / "a.mp4", 12)
        expect_video(path, options, decoder)
        begun = decoder._child
        with VideoReader(
            path, start_seconds=0.1, duration_seconds=0.2, size="32", decoder=decoder
        ) as reader:
            assert reader._child is begun
            assert sum(map(len, reader)) == 6
