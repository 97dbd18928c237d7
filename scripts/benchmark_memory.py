#!/usr/bin/env python
"""Measure the peak memory of commands on a short and a long synthetic video; it should be equal.

    scripts/benchmark_memory.py                   default settings, 25 minutes on two idle cores
    scripts/benchmark_memory.py hour 1080p        only these settings
    scripts/benchmark_memory.py 4k hour256        settings that are not run by default
    scripts/benchmark_memory.py windows           a Cosmos model on 1 window and on 20
    scripts/benchmark_memory.py --json FILE --resume           only settings that FILE lacks

Memory could grow with the number of frames, with their size, or with both. Hour-long videos have
small frames and a small model; large frames have shorter videos, still many times the length of a
chunk. Memory is that of the command and of the processes that it starts (decoder, writer).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which run it by path
from benchmark_tools import (
    add_quick,
    describe,
    facts,
    log,
    make_parser,
    markdown_table,
    write_json,
)
from processes import VTOK, run_command

from vtok.models.checkpoint import read_info, save_checkpoint
from vtok.models.cosmos import CosmosConfig, CosmosTokenizer
from vtok.nn.config import PRESETS, TokenConfig
from vtok.nn.token_pipeline import TokenPipeline
from vtok.nn.tokenizer import VideoTokenizer
from vtok.tokens.model import save_tokens
from vtok.video.ffmpeg import ffmpeg_path

RATE = 30
SMALL, SHIPPED, WINDOWS = "small", "vtok-base", "Cosmos DV8x8x8, quarter width"
CODING, ALL = ("encode", "decode"), ("encode", "decode", "tokens", "dump", "pack", "verify")
COPYING = ("cat", "verify", "cut")
TITLES = {"tokens": "encode --to tokens", "pack": "pack (the entropy coder alone)"}
MAX_RATIO = 1.05  # target for long MB / short MB


@dataclass(frozen=True)
class Setting:
    """Videos of two lengths, and the commands to run on both."""

    size: tuple[int, int]  # width and height in pixels
    frames: int  # length of the short video
    times: int  # length of the long video, in short videos
    model: str  # `SMALL`, `WINDOWS` or the name of a shipped model
    commands: tuple[str, ...]  # names known to `Commands`
    copies: int = 1  # copies of the codes that are joined before the commands run


MINUTE = 60 * RATE
SETTINGS = {
    "hour": Setting((64, 64), MINUTE, 60, SMALL, ALL),
    "shipped": Setting((256, 256), 900, 4, SHIPPED, ALL),
    "1080p": Setting((1920, 1080), 240, 3, SMALL, ALL),
    "copies": Setting((1920, 1080), 30, 60, SMALL, COPYING, copies=60),
    "large": Setting((1920, 1080), 37, 2, SHIPPED, CODING),
    "4k": Setting((3840, 2160), 21, 2, SHIPPED, CODING),
    "hour256": Setting((256, 256), MINUTE, 60, SMALL, ALL),
    "hour1080p": Setting((1920, 1080), MINUTE, 60, SMALL, ALL),
    "windows": Setting((832, 480), 17, 20, WINDOWS, CODING),
}
BY_DEFAULT = tuple(SETTINGS)[:5]
QUICK = Setting((64, 64), 9, 2, SMALL, ("encode", "dump", "pack"))


class Commands:
    """Commands that can be measured on one video."""

    def __init__(self, folder: Path, model: str, *, stages: bool = True) -> None:
        """Use an empty folder for files; `model` is a name or a checkpoint, maybe with stages."""
        self.video, self.codes, self.back = (folder / f"a.{x}" for x in ("mkv", "vtok", "mp4"))
        self._dump, self._joined = folder / "a.bin", folder / "joined.vtok"
        self._tokens, self._learner = folder / "a.safetensors", folder / "learner.safetensors"
        self._model = ("--model", model)
        self._rate = ("--stages", "2") if stages else ()

    def peak(self, name: str, copies: int = 1) -> float:
        """Run a command and return its peak memory in MiB; `cat` joins `copies` of the codes."""
        arguments: dict[str, tuple[str | Path, ...]] = {
            "encode": (self.video, "-o", self.codes, *self._rate, *self._model),
            "decode": (self.codes, "-o", self.back, *self._model),
            "tokens": (
                *(self.video, "-o", self._tokens, "--to", "tokens"),
                *("--token-learner", self._learner, *self._model),
            ),
            "dump": (self.codes, "-o", self._dump, "--format", "bin"),
            "pack": (self._dump, "-o", self.codes),
            "verify": (self.codes,),
            "cat": (*[self.codes] * copies, "-o", self._joined),
            "cut": (self.codes, "-o", self._joined, "--stages", "1"),
        }
        verb = {"tokens": "encode"}.get(name, name)
        quiet = ("-q",) if name == "verify" else ("-q", "--overwrite")
        result = run_command([*VTOK, verb, *arguments[name], *quiet])
        times = f"{result.seconds:.0f} s, {result.cpu_seconds:.0f} CPU s"
        log(f"{name}: {times}, {result.peak_mb:,.0f} MB")
        return result.peak_mb

    def join(self, copies: int) -> None:
        """Replace the code file by `copies` of itself, joined."""
        if copies > 1:
            self.peak("cat", copies)
            self._joined.replace(self.codes)


def make_video(path: Path, size: tuple[int, int], frames: int, times: int = 1) -> None:
    """Write a test pattern of (width, height) with `frames` frames, repeated `times` times."""
    short = path.with_suffix(f".short{path.suffix}")
    picture = f"testsrc2=size={size[0]}x{size[1]}:rate={RATE}"
    codec = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
    start = (ffmpeg_path(), "-v", "error", "-y")
    pattern = (*start, "-f", "lavfi", "-i", picture, "-frames:v", str(frames), *codec, short)
    subprocess.run([*map(str, pattern)], check=True)
    looped = (*start, "-stream_loop", str(times - 1), "-i", short, "-c", "copy", path)
    subprocess.run([*map(str, looped)], check=True)
    short.unlink()


def make_models(folder: Path, model: str) -> str:
    """Save the model, but a shipped one, and a token learner, all untrained; returns the model."""
    if model == WINDOWS:
        widths = (64, 128, 128)
        config = CosmosConfig(channels=32, encoder_widths=widths, decoder_widths=widths)
        path = folder / "model.safetensors"
        save_checkpoint(path, CosmosTokenizer.from_config(config), "cosmos")
        return str(path)
    if model == SMALL:
        layers = (("space_time_patch", 32), ("causal_depthwise", 32))
        small = replace(
            PRESETS[SHIPPED], init_dim=16, layers=layers, decoder_init_dim=16,
            decoder_layers=(("depthwise", 16), *layers),
        )  # fmt: skip
        model = str(folder / "model.safetensors")
        save_checkpoint(Path(model), VideoTokenizer.from_config(small), SMALL)
    info = read_info(model)
    latent_dim = VideoTokenizer.from_config(info.config).quantizer.dim
    learner = TokenPipeline(TokenConfig(latent_dim, dim=32, map_dim=16, max_tokens=8))
    save_tokens(folder / "learner.safetensors", learner, "fresh", info)
    return model


def peaks(folder: Path, model: str, setting: Setting, times: int) -> dict[str, float]:
    """Measure the peak MiB of each command on the short video repeated `times` times."""
    commands = Commands(folder, model, stages=setting.model != WINDOWS)
    joined = setting.copies > 1
    make_video(commands.video, setting.size, setting.frames, 1 if joined else times)
    if joined:
        commands.peak("encode")
        commands.join(setting.copies)
    if not joined:
        return {name: commands.peak(name) for name in setting.commands}
    found = {"cat": commands.peak("cat", times)}
    commands.join(times)
    return found | {name: commands.peak(name) for name in setting.commands if name != "cat"}


def measure(name: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """Measure a setting; yields a row for each command."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vtok-memory-") as folder:
        model = make_models(Path(folder), setting.model)
        short, long = (peaks(Path(folder), model, setting, n) for n in (1, setting.times))
    frames = setting.frames * setting.copies
    for command, megabytes in short.items():
        yield {
            "setting": name, "size": "x".join(map(str, setting.size)), "model": setting.model,
            "command": TITLES.get(command, command), "short frames": frames,
            "long frames": frames * setting.times, "short MB": megabytes,
            "long MB": long[command], "ratio": long[command] / megabytes,
        }  # fmt: skip
    log(f"{name}: done in {time.monotonic() - begin:.0f} s")


def table(rows: Sequence[dict[str, Any]], settings: Sequence[str] = tuple(SETTINGS)) -> str:
    """Format all rows as Markdown, with the largest ratio and the settings that were not run."""
    heads = ("size", "model", "command", "short, frames", "long, frames", "short, MB", "long, MB")
    cells = []
    for row in rows:
        counts = (f"{row[f'{x} frames']:,}" for x in ("short", "long"))
        sizes = (f"{row[f'{x} MB']:,.0f}" for x in ("short", "long"))
        name = (row["size"], row["model"], row["command"])
        cells.append([*name, *counts, *sizes, f"{row['ratio']:.3f}"])
    worst = max(rows, key=lambda row: row["ratio"])
    verdict = "within" if worst["ratio"] <= MAX_RATIO else "above"
    lines = [
        markdown_table((*heads, "ratio"), cells),
        f"\nThe largest ratio is {worst['ratio']:.3f}, of {worst['command']} at {worst['size']} "
        f"({verdict} the target of {MAX_RATIO:.2f}).",
    ]
    left = [name for name in settings if name not in {row["setting"] for row in rows}]
    if left:
        lines += ["\nNot run:\n", *(f"- `{name}`: {summarize(SETTINGS[name])}" for name in left)]
    return "\n".join(lines)


def kept_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of an earlier run whose settings are unchanged."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    lengths = {
        name: (setting.frames * setting.copies, setting.frames * setting.copies * setting.times)
        for name, setting in SETTINGS.items()
    }
    return [
        row
        for row in rows
        if lengths.get(row["setting"]) == (row["short frames"], row["long frames"])
    ]


def summarize(setting: Setting) -> str:
    """Describe a setting."""
    frames, (width, height) = setting.frames * setting.copies, setting.size
    long = f"{frames:,} against {frames * setting.times:,} frames of {width}x{height}"
    return f"{long}, {setting.model} model, {', '.join(setting.commands)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table; write JSON after each setting."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "settings", nargs="*", metavar="SETTING", default=BY_DEFAULT,
        help=", ".join(f"{name}: {summarize(setting)}" for name, setting in SETTINGS.items()),
    )  # fmt: skip
    add_quick(parser)
    parser.add_argument("--resume", action="store_true", help="skip the settings that FILE has")
    args = parser.parse_args(arguments)
    if args.resume and args.json is None:
        parser.error("--resume needs --json FILE")
    if unknown := set(args.settings) - set(SETTINGS):
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(SETTINGS)}")
    machine = facts(0, "float32")
    del machine["threads"], machine["dtype"]  # defaults, with little effect on memory
    rows = kept_rows(args.json) if args.resume else []
    chosen = {"quick": QUICK} if args.quick else {name: SETTINGS[name] for name in args.settings}
    for name, setting in chosen.items():
        if name in {row["setting"] for row in rows}:
            continue
        rows += measure(name, setting)
        rows.sort(key=lambda row: [*SETTINGS, "quick"].index(row["setting"]))
        write_json(args.json, {"machine": machine, "rows": rows})
    asked = tuple(SETTINGS) if args.settings is BY_DEFAULT else ()
    print(f"{describe(machine)}\n\n{table(rows, asked)}")


if __name__ == "__main__":
    main()
