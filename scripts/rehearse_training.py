#!/usr/bin/env python
"""Rehearse a training run on rented hardware: every step of it, at a tiny size, in minutes.

Makes small clips, packs them, and runs `scripts/train_base` on the pack with the recipe's
`[accelerator]` table on an accelerator: components, training with several workers in bfloat16, a
kill, a resumed run that is compiled, and the export of the weights. Then measures the weights with
`scripts/quality.py`. Prints a line per step, and ends at the first that does not work.

    scripts/rehearse_training.py
    scripts/rehearse_training.py --no-compile --json
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic, sleep

from vtok.video.ffmpeg import ffmpeg_path

ROOT = Path(__file__).parent.parent
VIDEOS = (
    "testsrc2=size=192x160", "mandelbrot=size=192x160:end_scale=0.02",
    "life=size=192x160:mold=10:death_color=#c83232:life_color=#40ff40", "gradients=size=192x160",
)  # fmt: skip
TINY = (
    "model.layers=[['space_time_patch', 32], ['causal_depthwise', 32]]",
    "model.decoder_layers=[['depthwise', 16], ['space_time_patch', 32], ['causal_depthwise', 32]]",
    "model.init_dim=16", "model.decoder_init_dim=16", "frames=5", "crop=48", "batch=4", "warm_up=1",
    "save_every=2", "workers=2", "precision=bfloat16",
)  # fmt: skip
KILL_AFTER, MORE_STEPS, TIMEOUT_SECONDS = 2, 4, 1800


def make_data(folder: Path, frames: int = 30) -> Path:
    """Create a folder of synthetic videos and a photo."""
    sources = [(f"{n}.mp4", source, frames) for n, source in enumerate(VIDEOS)]
    sources.append(("photo.png", "mandelbrot=size=256x192:start_scale=0.5", 1))
    for name, source, count in sources:
        subprocess.run(
            [ffmpeg_path(), "-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", source,
             "-frames:v", str(count), "-pix_fmt", "rgb24" if count == 1 else "yuv420p",
             str(folder / name)],
            check=True,
        )  # fmt: skip
    return folder


class Rehearsal:
    """The commands of a rehearsal, run in a temporary folder."""

    def __init__(self, folder: Path, device: str) -> None:
        self.device, self.runs = device, folder / "runs"
        self.pack = folder / "pack"
        self.states = self.runs / "base" / "states"
        self.weights = self.runs / "vtok-base.safetensors"
        # this Python and this package; few clips for the components
        paths = {"PYTHONPATH": str(ROOT), "READY": sys.executable, "RUNS": str(self.runs)}
        self.environment = {**os.environ, **paths, "CLIPS": "8"}

    def run(self, *command: object) -> str:
        """Run a command to its end; returns all that it printed."""
        done = subprocess.run(
            [*map(str, command)], cwd=ROOT, env=self.environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{command[0]} ended with {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout

    def pack_clips(self) -> str:
        """Make clips and pack them."""
        with tempfile.TemporaryDirectory(prefix="vtok-") as made:
            data = make_data(Path(made))
            return self.run(sys.executable, "scripts/pack_clips.py", data, "-o", self.pack)

    def training(self, *settings: str) -> list[str]:
        """Return the command that trains, with further settings."""
        given = [part for setting in (*TINY, *settings) for part in ("--set", setting)]
        options = ["--device", self.device, "--threads", "1"]
        return ["scripts/train_base", str(self.pack), "--", *options, *given]

    def train_until_killed(self) -> str:
        """Fit the components, train, and kill all processes after some steps."""
        process = subprocess.Popen(
            self.training("steps=100000"), cwd=ROOT, env=self.environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        end = monotonic() + TIMEOUT_SECONDS
        wanted = self.states / f"step-{KILL_AFTER:08d}.safetensors"
        while not wanted.exists() and process.poll() is None and monotonic() < end:
            sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0]
        if not self.saved_step():
            raise SystemExit(f"training saved no state: {said[-2000:]}")
        return f"killed after step {self.saved_step()}"

    def saved_step(self) -> int:
        """Return the step of the newest state; 0 without one."""
        steps = [int(path.stem[5:]) for path in self.states.glob("step-*.safetensors")]
        return max(steps, default=0)

    def resume(self, compiled: bool) -> str:
        """Resume to the end and export the weights; the log must hold every step once."""
        begun = self.saved_step()
        last = begun + MORE_STEPS
        said = self.run(*self.training(f"steps={last}", f"compile={str(compiled).lower()}"))
        if f"resuming at step {begun}" not in said or not self.weights.exists():
            raise SystemExit(f"the run was not resumed at step {begun}: {said[-2000:]}")
        with (self.runs / "base" / "log.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        if [int(row["step"]) for row in rows] != list(range(1, last + 1)):
            raise SystemExit("the log lacks steps")
        if not all(math.isfinite(float(row["loss"])) for row in rows):
            raise SystemExit("a loss is not finite")
        speed = float(rows[-1]["clips_per_second"])
        return f"steps {begun + 1} to {last}, {speed:.1f} clips/s"

    def measure(self) -> str:
        """Measure the exported weights on one of the clips."""
        clip = min((self.pack / "video").iterdir())
        command = ["scripts/quality.py", clip, "--model", self.weights, "--bits", "18,72", "--json"]
        found = json.loads(self.run(sys.executable, *command).splitlines()[-1])["mean"]
        return ", ".join(f"{psnr:.2f} dB at {bits} bits" for bits, psnr in found.items())


def main() -> None:
    """Take all steps, and print the seconds of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-compile", action="store_true", help="resume without torch.compile")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vtok-") as folder:
        rehearsal = Rehearsal(Path(folder), args.device)
        steps = {
            "pack": rehearsal.pack_clips,
            "components and training until a kill": rehearsal.train_until_killed,
            "resume and export": lambda: rehearsal.resume(not args.no_compile),
            "quality": rehearsal.measure,
        }
        for name, take in steps.items():
            start = monotonic()
            row = {"step": name, "result": take().strip().splitlines()[-1]}
            row |= {"seconds": round(monotonic() - start, 1)}
            print(json.dumps(row) if args.json else "{step}: {result} ({seconds} s)".format(**row))
    print("rehearsed", file=sys.stderr)


if __name__ == "__main__":
    main()
