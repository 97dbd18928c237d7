#!/usr/bin/env python
"""What do learned tokens know of a video? Linear probes and nearest neighbours, against pooling.

Two questions about a window of frames: which clip is it from (trained on windows early in each
clip, tested on windows late in it, cut out at other places), and in which of 8 directions does a
patch slide (over backgrounds and with textures that training has not). Answered from

- the tokens of a learner, S of `dim` numbers for each latent step;
- the tokens of the same learner with fresh weights;
- means of the latents over a grid of cells, as many as fit into as many numbers;
- the latents at random positions, likewise the same for all windows;
- means over 8 cells, 2x4, which are fewer numbers.

The numbers of all steps of a window stand side by side, standardized by the windows trained on.
Every seed draws windows, fresh weights and positions anew.

    scripts/token_probe.py videos/*.mp4 --learners v11 --photos photos/
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from probe_features import Features, learned, pooled, scattered, untrained, widest_grid
from probe_sets import (
    DIRECTIONS,
    MOTION_SIDE,
    Windows,
    clip_windows,
    has_windows,
    read_start,
    sliding_windows,
    to_clips,
)
from probes import PROBES, Array, accuracies
from torch import Tensor

from vtok._files import atomic_output
from vtok.errors import InputError, UsageError, VtokError
from vtok.models.load import LoadedTokenizer, load
from vtok.tokens.model import load_token_model
from vtok.video.images import is_picture

TASKS = ("clip", "direction")
BATCH = 16
BEGIN, END = "<!-- probe: made by scripts/token_probe.py -->", "<!-- end of probe -->"


def all_features(model: LoadedTokenizer, learners: list[str], counts: list[int]) -> list[Features]:
    """What is compared, in the order of the table."""
    found: list[Features] = []
    for count in counts:
        budgets = set()
        for learner in learners:
            loaded = load_token_model(learner, model=model)
            loaded.check_count(count, (MOTION_SIDE, MOTION_SIDE))
            config = loaded.pipeline.config
            budgets.add(count * config.dim)
            name = f"{count} tokens, {config.learner}"
            found += [
                learned(name, loaded.pipeline, count), untrained(name, loaded.pipeline, count),
            ]  # fmt: skip
        for numbers in sorted(budgets):
            found += [
                pooled(
                    "means of as many cells as fit",
                    lambda size, dim, n=numbers: widest_grid(size, max(1, n // dim)),
                ),
                scattered(numbers),
            ]
    return [*found, pooled("means of 2x4 cells", lambda size, dim: (2, 4))]


@dataclass(frozen=True)
class Encoded:
    """Windows as latents [N, D, t, h, w], with their labels; see `Windows`."""

    train: Tensor
    train_labels: np.ndarray
    test: Tensor
    test_labels: np.ndarray


def encode(model: LoadedTokenizer, windows: Windows) -> Encoded:
    """Windows to latents, each encoded alone."""
    with torch.inference_mode():
        train, test = (
            torch.cat([model.tokenizer.encode_latents(clip.to(model.device)) for clip in clips])
            for clips in (to_clips(windows.train, BATCH), to_clips(windows.test, BATCH))
        )
    return Encoded(train, windows.train_labels, test, windows.test_labels)


def join(parts: list[Encoded]) -> Encoded:
    """Windows of several clips as one set."""
    return Encoded(
        torch.cat([part.train for part in parts]),
        np.concatenate([part.train_labels for part in parts]),
        torch.cat([part.test for part in parts]),
        np.concatenate([part.test_labels for part in parts]),
    )


def numbers_of(features: Features, latents: Tensor, seed: int) -> tuple[Array, int]:
    """Features [N, t * numbers], and how many numbers a step has."""
    with torch.inference_mode():
        made = torch.cat([features.make(part, seed) for part in latents.split(BATCH)])
    return made.flatten(1).double().cpu().numpy(), made.shape[2]


def read_clips(args: argparse.Namespace, model: LoadedTokenizer) -> list[Encoded]:
    """For each seed the windows of all clips; a clip is read once, and its frames are not kept."""
    sets: list[list[Encoded]] = [[] for _ in range(args.seeds)]
    label = 0
    for path in args.videos:
        frames = read_start(path, args.seconds)
        if not has_windows(frames):
            print(f"{path}: too short or too narrow, left out", file=sys.stderr)
            continue
        for seed, parts in enumerate(sets):
            parts.append(encode(model, clip_windows(frames, label, args.windows, seed)))
        label += 1
        print(f"clip {label} of at most {len(args.videos)}", file=sys.stderr)
    if label < 2:
        raise InputError("token_probe: expected two videos or more that are long enough")
    return [join(parts) for parts in sets]


def find_files(folder: Path | None) -> list[Path]:
    """All files below a folder, in order."""
    return [] if folder is None else sorted(path for path in folder.rglob("*") if path.is_file())


def probe(args: argparse.Namespace) -> dict[str, Any]:
    """All accuracies, in shares, by task, features and probe: one for each seed."""
    model = load(args.model, dtype="float32")
    features = all_features(model, args.learners, args.tokens)
    photos = [path for path in find_files(args.photos) if is_picture(path)]
    clips = read_clips(args, model)
    rows: list[dict[str, Any]] = [{"features": one.name} for one in features]
    begin = time.perf_counter()
    for seed in range(args.seeds):
        slides = sliding_windows(photos, args.slides, args.slides // 2, seed)
        for task, held in zip(TASKS, (clips[seed], encode(model, slides)), strict=True):
            for row, one in zip(rows, features, strict=True):
                known, count = numbers_of(one, held.train, seed)
                asked, _ = numbers_of(one, held.test, seed)
                right = accuracies(known, held.train_labels, asked, held.test_labels)
                for name, share in right.items():
                    row.setdefault(f"{task} {name}", []).append(share)
                row[f"{task} numbers"] = count
        took = time.perf_counter() - begin
        left = took / (seed + 1) * (args.seeds - seed - 1)
        print(f"seed {seed + 1}/{args.seeds}: {took:.0f} s, {left:.0f} s left", file=sys.stderr)
    names = int(clips[0].train_labels.max()) + 1
    chance = {"clip": 1 / names, "direction": 1 / len(DIRECTIONS)}
    tested = {"clip": names * args.windows, "direction": args.slides // 2}
    return {"seeds": args.seeds, "clips": names, "chance": chance, "tested": tested, "rows": rows}


def markdown(found: dict[str, Any]) -> str:
    """The table: mean and standard deviation over the seeds, in percent."""
    columns = [f"{task} {name}" for task in TASKS for name in PROBES]
    lines = ["| features | numbers a step | " + " | ".join(columns) + " |"]
    lines.append("|---|---|" + "---|" * len(columns))
    for row in found["rows"]:
        numbers = " / ".join(f"{n:,}" for n in dict.fromkeys(row[f"{t} numbers"] for t in TASKS))
        cells = [f"{100 * np.mean(row[c]):.1f} ± {100 * np.std(row[c]):.1f}" for c in columns]
        lines.append(f"| {row['features']} | {numbers} | " + " | ".join(cells) + " |")
    chances = [f"{100 * found['chance'][task]:.1f}" for task in TASKS for _ in PROBES]
    lines.append("| chance | | " + " | ".join(chances) + " |")
    tested = found["tested"]
    lines += ["", f"Percent right, mean and standard deviation over {found['seeds']} seeds; "
              f"{tested['clip']} windows of {found['clips']} clips and "
              f"{tested['direction']} sliding patches tested by each."]  # fmt: skip
    return "\n".join(lines)


def write_page(page: Path, table: str) -> None:
    """Put a table between the markers of a page.

    Raises:
        InputError: the page has no markers.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{page}: has no lines {BEGIN} and {END} to write between")
    with atomic_output(page, overwrite=True) as temporary:
        temporary.write_text(f"{before}{begin}\n{table}\n{end}{after}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--learners", nargs="+", default=["v11"], help="names or files")
    parser.add_argument("--photos", type=Path, help="folder of textures; noise without it")
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8], metavar="S")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=10, help="of each video, at most")
    parser.add_argument("--windows", type=int, default=4, help="of each clip, and as many to test")
    parser.add_argument("--slides", type=int, default=400, help="to train on; half as many to test")
    parser.add_argument("--page", type=Path, help="write the table between this page's markers")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for name, least in (("seeds", 1), ("windows", 1), ("slides", 2 * len(DIRECTIONS))):
        if getattr(args, name) < least:
            raise UsageError(f"--{name} {getattr(args, name)}: expected {least} or more")
    return args


def main() -> None:
    """Probe, and print or write the table."""
    try:
        args = parse()
        found = probe(args)
        if args.page:
            write_page(args.page, markdown(found))
    except VtokError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(found) if args.json else markdown(found))


if __name__ == "__main__":
    main()
