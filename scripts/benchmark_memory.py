#!/usr/bin/env python
"""Peak memory of commands on a short and on a long synthetic video: it must be the same.

    scripts/benchmark_memory.py                   all of it, some 25 minutes on two idle cores
    scripts/benchmark_memory.py hour 1080p        these settings alone
    scripts/benchmark_memory.py 4k hour256        not among those run by default
    scripts/benchmark_memory.py --json FILE --resume           only what is not in FILE

Memory may grow with frames, with their size, or with both. A whole hour is of small frames and by
a small model; large frames are fewer, but still many times what a chunk holds. What is measured is
the most that a command and the processes that it starts (decoder, writer) have at one time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where a test runs this by its path
from machine import facts, line
from processes import VTOK, run_command

from vtok._files import atomic_output
from vtok.models.checkpoint import read_info, save_checkpoint
from vtok.nn.config import PRESETS, TokenConfig
from vtok.nn.token_pipeline import TokenPipeline
from vtok.nn.tokenizer import VideoTokenizer
from vtok.tokens.model import save_tokens
from vtok.video.ffmpeg import ffmpeg_path

RATE = 30
SMALL, SHIPPED = "small", "vtok-base"
CODING, ALL = ("encode", "decode"), ("encode", "decode", "tokens", "dump", "pack", "verify")
COPYING = ("cat", "verify", "cut")
TITLES = {"tokens": "encode --to tokens", "pack": "pack (the entropy coder alone)"}
MOST = 1.05  # of the memory that the short video takes


@dataclass(frozen=True)
class Setting:
    """A short and a long video, and what is done with both.

    Attributes:
        size: width and height of the frames.
        frames: of the short video.
        times: how often the long one has them.
        model: `SMALL` or a shipped name.
        commands: of `Commands`.
        made: how often what is encoded of the video is joined before these commands.
    """

    size: tuple[int, int]
    frames: int
    times: int
    model: str
    commands: tuple[str, ...]
    made: int = 1


MINUTE = 60 * RATE
SETTINGS = {
    "hour": Setting((64, 64), MINUTE, 60, SMALL, ALL),
    "shipped": Setting((256, 256), 900, 4, SHIPPED, ALL),
    "1080p": Setting((1920, 1080), 240, 3, SMALL, ALL),
    "copies": Setting((1920, 1080), 30, 60, SMALL, COPYING, made=60),
    "large": Setting((1920, 1080), 37, 2, SHIPPED, CODING),
    "4k": Setting((3840, 2160), 21, 2, SHIPPED, CODING),
    "hour256": Setting((256, 256), MINUTE, 60, SMALL, ALL),
    "hour1080p": Setting((1920, 1080), MINUTE, 60, SMALL, ALL),
}
BY_DEFAULT = tuple(SETTINGS)[:5]
QUICK = Setting((64, 64), 9, 2, SMALL, ("encode", "dump", "pack"))


class Commands:
    """What can be done with a video, each command once on request, with its peak in megabytes."""

    def __init__(self, folder: Path, model: str) -> None:
        """Begin in a folder of its own; `model` is a name or a checkpoint."""
        self.video, self.codes, self.back = (folder / f"a.{x}" for x in ("mkv", "vtok", "mp4"))
        self._dump, self._joined = folder / "a.bin", folder / "joined.vtok"
        self._tokens, self._learner = folder / "a.safetensors", folder / "learner.safetensors"
        self._model = ("--model", model)

    def peak(self, name: str, copies: int = 1) -> float:
        """Run one; `cat` joins the codes with themselves, so many `copies`."""
        made: dict[str, tuple[str | Path, ...]] = {
            "encode": (self.video, "-o", self.codes, "--stages", "2", *self._model),
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
        ran = run_command([*VTOK, verb, *made[name], *quiet])
        say(f"{name}: {ran.seconds:.0f} s, {ran.cpu_seconds:.0f} s of cores, {ran.peak_mb:,.0f} MB")
        return ran.peak_mb

    def join(self, copies: int) -> None:
        """Go on with the codes joined with themselves, so many `copies`."""
        if copies > 1:
            self.peak("cat", copies)
            self._joined.replace(self.codes)


def make_video(path: Path, size: tuple[int, int], frames: int, times: int = 1) -> None:
    """Write a moving test picture of (width, height), some frames of it and all these again."""
    short = path.with_suffix(f".short{path.suffix}")
    picture = f"testsrc2=size={size[0]}x{size[1]}:rate={RATE}"
    codec = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
    start = (ffmpeg_path(), "-v", "error", "-y")
    made = (*start, "-f", "lavfi", "-i", picture, "-frames:v", str(frames), *codec, short)
    subprocess.run([*map(str, made)], check=True)
    looped = (*start, "-stream_loop", str(times - 1), "-i", short, "-c", "copy", path)
    subprocess.run([*map(str, looped)], check=True)
    short.unlink()


def make_models(folder: Path, model: str) -> str:
    """A learner with the weights it starts from, and the small model where that is asked for."""
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
    """Peak megabytes by command, of the short video so many `times`."""
    commands, joined = Commands(folder, model), setting.made > 1
    make_video(commands.video, setting.size, setting.frames, 1 if joined else times)
    if joined:
        commands.peak("encode")
        commands.join(setting.made)
    if not joined:
        return {name: commands.peak(name) for name in setting.commands}
    found = {"cat": commands.peak("cat", times)}
    commands.join(times)
    return found | {name: commands.peak(name) for name in setting.commands if name != "cat"}


def measure(name: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """A row for each command, the short video against the long one."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vtok-memory-") as folder:
        model = make_models(Path(folder), setting.model)
        short, long = (peaks(Path(folder), model, setting, n) for n in (1, setting.times))
    frames = setting.frames * setting.made
    for command, megabytes in short.items():
        yield {
            "setting": name, "size": "x".join(map(str, setting.size)), "model": setting.model,
            "command": TITLES.get(command, command), "short frames": frames,
            "long frames": frames * setting.times, "short MB": megabytes,
            "long MB": long[command], "ratio": long[command] / megabytes,
        }  # fmt: skip
    say(f"{name}: done in {time.monotonic() - begin:.0f} s")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All rows as Markdown, what they come to, and what was not run."""
    heads = ("size", "model", "command", "short, frames", "long, frames", "short, MB", "long, MB")
    lines = ["| " + " | ".join((*heads, "ratio")) + " |", "|---" * (len(heads) + 1) + "|"]
    for row in rows:
        counts = (f"{row[f'{x} frames']:,}" for x in ("short", "long"))
        sizes = (f"{row[f'{x} MB']:,.0f}" for x in ("short", "long"))
        told = (row["size"], row["model"], row["command"], *counts, *sizes, f"{row['ratio']:.3f}")
        lines.append("| " + " | ".join(told) + " |")
    worst = max(rows, key=lambda row: row["ratio"])
    lines.append(
        f"\nThe largest ratio is {worst['ratio']:.3f}, of {worst['command']} at {worst['size']} "
        f"({'within' if worst['ratio'] <= MOST else 'more than'} the {MOST - 1:.0%} aimed at)."
    )
    left = [name for name in SETTINGS if name not in {row["setting"] for row in rows}]
    if left:
        lines += ["\nNot run:\n", *(f"- `{name}`: {told_of(SETTINGS[name])}" for name in left)]
    return "\n".join(lines)


def kept_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run whose videos were as long as they are to be now."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if row["setting"] in SETTINGS and _is_of(row)]


def _is_of(row: dict[str, Any]) -> bool:
    setting = SETTINGS[row["setting"]]
    short = setting.frames * setting.made
    return bool((row["short frames"], row["long frames"]) == (short, short * setting.times))


def say(text: str) -> None:
    """One line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def told_of(setting: Setting) -> str:
    """A setting in words."""
    frames, (width, height) = setting.frames * setting.made, setting.size
    long = f"{frames:,} against {frames * setting.times:,} frames of {width}x{height}"
    return f"{long}, {setting.model} model, {', '.join(setting.commands)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table; JSON is written setting by setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "settings", nargs="*", metavar="SETTING", default=BY_DEFAULT,
        help=", ".join(f"{name}: {told_of(setting)}" for name, setting in SETTINGS.items()),
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="seconds of 64x64: does all this run?")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    parser.add_argument("--resume", action="store_true", help="keep the settings that FILE has")
    args = parser.parse_args(arguments)
    if args.resume and args.json is None:
        parser.error("--resume needs --json FILE")
    if unknown := set(args.settings) - set(SETTINGS):
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(SETTINGS)}")
    os.environ["NUMBA_DISABLE_JIT"] = "1"
    machine = facts(0, "float32")
    del machine["threads"], machine["dtype"]  # memory hardly hangs on them, and each is its default
    rows = kept_rows(args.json) if args.resume else []
    chosen = {"quick": QUICK} if args.quick else {name: SETTINGS[name] for name in args.settings}
    for name, setting in chosen.items():
        if name in {row["setting"] for row in rows}:
            continue
        rows += measure(name, setting)
        rows.sort(key=lambda row: [*SETTINGS, "quick"].index(row["setting"]))
        if args.json:
            with atomic_output(args.json, overwrite=True) as path:
                path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"{line(machine)}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
