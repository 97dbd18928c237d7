#!/usr/bin/env python
"""Compare learned tokens with pooled latents by linear probes and nearest neighbours.

Two questions are asked about a window of frames. Clip: which clip is it from? Probes are trained on
windows early in each clip and tested on windows late in it, at other places of the frame.
Direction: in which of 8 directions does a patch slide? Backgrounds and textures are not those of
training. The features, all steps of a window concatenated, are

- the tokens of a learner, S of `dim` numbers for each latent step;
- the tokens of the same learner with random weights;
- means of the latents over as many grid cells as give the same count of numbers;
- the latents at random positions, as many numbers again;
- means over 2x4 cells, which are fewer numbers.

Each seed draws other windows, random weights and positions.

    scripts/token_probe.py videos/*.mp4 --learners v11 --photos photos/
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
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
from torch import Tensor
from torch.nn import functional

from vtok.errors import InputError, UsageError, VtokError
from vtok.models.load import LoadedTokenizer, load
from vtok.nn.token_pipeline import TokenPipeline
from vtok.tokens.model import STAGES, load_token_model
from vtok.video.suffixes import PHOTO_SUFFIXES

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
TASKS = ("clip", "direction")
BATCH = 16
RIDGES = 10.0 ** np.arange(-4, 3)


@dataclass(frozen=True)
class Features:
    """A function from latents to features.

    Attributes:
        name: name in the table.
        make: (latents [N, D, t, h, w], seed) -> features [N, t, numbers].
    """

    name: str
    make: Callable[[Tensor, int], Tensor]


def learned(name: str, pipeline: TokenPipeline, count: int) -> Features:
    """Tokens of a trained learner."""
    return Features(name, lambda latents, _: pipeline.encode(latents, count).flatten(2))


def untrained(name: str, pipeline: TokenPipeline, count: int) -> Features:
    """Tokens of a learner of the same configuration with random weights for each seed."""

    def make(latents: Tensor, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = TokenPipeline(pipeline.config).eval()
        return fresh.to(latents).encode(latents, count).flatten(2)

    return Features(f"{name}, fresh weights", make)


def pooled(name: str, choose: Callable[[tuple[int, int], int], tuple[int, int]]) -> Features:
    """Means over the cells of a grid; `choose` maps (size, channels) to (rows, columns)."""

    def make(latents: Tensor, _: int) -> Tensor:
        grid = choose((latents.shape[3], latents.shape[4]), latents.shape[1])
        frames = latents.transpose(1, 2).flatten(0, 1)
        means = functional.adaptive_avg_pool2d(frames, grid)
        return means.unflatten(0, (len(latents), -1)).flatten(2)

    return Features(name, make)


def scattered(numbers: int) -> Features:
    """Latents at random positions, the same for all windows of a seed."""

    def make(latents: Tensor, seed: int) -> Tensor:
        places = latents.flatten(3)  # [N, D, t, h * w]
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(places.shape[3], generator=generator)
        kept = places[..., chosen[: max(1, numbers // latents.shape[1])]]
        return kept.permute(0, 2, 1, 3).flatten(2)

    return Features("latents at random positions", make)


def widest_grid(size: tuple[int, int], most: int) -> tuple[int, int]:
    """Largest grid of at most `most` cells, with no side longer than twice the other."""
    grids = [
        (rows, columns)
        for rows in range(1, min(size[0], most) + 1)
        for columns in range(1, min(size[1], most // rows) + 1)
        if max(rows, columns) <= 2 * min(rows, columns)
    ]
    return max(grids, key=lambda grid: (grid[0] * grid[1], -abs(grid[0] - grid[1])))


def all_features(model: LoadedTokenizer, learners: list[str], counts: list[int]) -> list[Features]:
    """All features, in the order of the table."""
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


def standardized(train: Array, test: Array) -> tuple[Array, Array]:
    """Both arrays, scaled by the mean and standard deviation of `train`."""
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale < 1e-9 * max(1.0, float(scale.max()))] = 1.0
    return (train - mean) / scale, (test - mean) / scale


def linear_probe(train: Array, labels: Labels, test: Array) -> Labels:
    """Classes of `test` by ridge regression on one-hot labels.

    The ridge is the one with the smallest leave-one-out error on `train`, in closed form.

    Args:
        train, test: standardized features [N, D].
        labels: labels of `train`, 0..C-1.
    """
    targets = np.eye(int(labels.max()) + 1)[labels]
    centre = targets.mean(axis=0)
    targets = targets - centre
    kernel = train @ train.T / train.shape[1]
    values, vectors = np.linalg.eigh(kernel)
    values, projected = values.clip(min=0), vectors.T @ targets
    best: tuple[float, Array] | None = None
    for ridge in RIDGES:
        kept = values / (values + ridge)
        fitted = vectors @ (kept[:, None] * projected)
        leverage = np.einsum("ij,j,ij->i", vectors, kept, vectors)[:, None]
        error = float((((targets - fitted) / (1 - leverage).clip(min=1e-6)) ** 2).mean())
        if best is None or error < best[0]:
            best = error, vectors @ (projected / (values + ridge)[:, None])
    assert best is not None
    scores = test @ train.T / train.shape[1] @ best[1] + centre
    return np.asarray(scores.argmax(axis=1))


def nearest_neighbour(train: Array, labels: Labels, test: Array) -> Labels:
    """Classes of `test` by the window of `train` with the smallest angle."""
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (train, test))
    return np.asarray(labels[(test @ train.T).argmax(axis=1)])


PROBES = {"linear": linear_probe, "nearest": nearest_neighbour}


def accuracies(
    train: Array, train_labels: Labels, test: Array, test_labels: Labels
) -> dict[str, float]:
    """Accuracy of each probe, 0..1."""
    train, test = standardized(train, test)
    return {
        name: float((probe(train, train_labels, test) == test_labels).mean())
        for name, probe in PROBES.items()
    }


@dataclass(frozen=True)
class Encoded:
    """Latents [N, D, t, h, w] and labels of `Windows`."""

    train: Tensor
    train_labels: np.ndarray
    test: Tensor
    test_labels: np.ndarray


def encode(model: LoadedTokenizer, windows: Windows) -> Encoded:
    """Encode each window on its own."""
    with torch.inference_mode():
        train, test = (
            torch.cat(
                [
                    model.tokenizer.encode_latents(clip.to(model.device), num_stages=STAGES)
                    for clip in clips
                ]
            )
            for clips in (to_clips(windows.train, BATCH), to_clips(windows.test, BATCH))
        )
    return Encoded(train, windows.train_labels, test, windows.test_labels)


def join(parts: list[Encoded]) -> Encoded:
    """Concatenate the windows of several clips."""
    return Encoded(
        torch.cat([part.train for part in parts]),
        np.concatenate([part.train_labels for part in parts]),
        torch.cat([part.test for part in parts]),
        np.concatenate([part.test_labels for part in parts]),
    )


def numbers_of(features: Features, latents: Tensor, seed: int) -> tuple[Array, int]:
    """Return features [N, t * numbers] and the numbers per step."""
    with torch.inference_mode():
        made = torch.cat([features.make(part, seed) for part in latents.split(BATCH)])
    return made.flatten(1).double().cpu().numpy(), made.shape[2]


def read_clips(args: argparse.Namespace, model: LoadedTokenizer) -> list[Encoded]:
    """Windows of all clips for each seed; each clip is read once."""
    sets: list[list[Encoded]] = [[] for _ in range(args.seeds)]
    label = 0
    for path in args.videos:
        frames = read_start(path, args.seconds)
        if not has_windows(frames):
            print(f"{path}: too short or too small, skipped", file=sys.stderr)
            continue
        for seed, parts in enumerate(sets):
            parts.append(encode(model, clip_windows(frames, label, args.windows, seed)))
        label += 1
        print(f"clip {label} of at most {len(args.videos)}", file=sys.stderr)
    if label < 2:
        raise InputError("token_probe: expected two or more videos that are long enough")
    return [join(parts) for parts in sets]


def find_files(folder: Path | None) -> list[Path]:
    """All files below a folder, sorted."""
    return [] if folder is None else sorted(path for path in folder.rglob("*") if path.is_file())


def probe(args: argparse.Namespace) -> dict[str, Any]:
    """Accuracies 0..1 by features, task and probe, one for each seed."""
    model = load(args.model, dtype="float32")
    features = all_features(model, args.learners, args.tokens)
    photos = [path for path in find_files(args.photos) if path.suffix.lower() in PHOTO_SUFFIXES]
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
    """Markdown table of means and standard deviations over the seeds, in percent."""
    columns = [f"{task} {name}" for task in TASKS for name in PROBES]
    lines = ["| features | numbers per step | " + " | ".join(columns) + " |"]
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


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--learners", nargs="+", default=["v11"], help="names or files")
    parser.add_argument(
        "--photos", type=Path, help="folder of photos for textures; noise if not given"
    )
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8], metavar="S")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=10, help="limit for each video")
    parser.add_argument(
        "--windows", type=int, default=4, help="of each clip for training, and as many for testing"
    )
    parser.add_argument(
        "--slides", type=int, default=400, help="windows for training; half as many for testing"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for name, least in (("seeds", 1), ("windows", 1), ("slides", 2 * len(DIRECTIONS))):
        if getattr(args, name) < least:
            raise UsageError(f"--{name} {getattr(args, name)}: expected {least} or more")
    return args


def main() -> None:
    """Print a Markdown table, or JSON."""
    try:
        args = parse()
        found = probe(args)
    except VtokError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(found) if args.json else markdown(found))


if __name__ == "__main__":
    main()
