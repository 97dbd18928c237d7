"""Run code of other projects as a reference: imports without unneeded packages, random weights."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
import types
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtok.nn.interface import Tokenizer

Case = TypeVar("Case")
TOLERANCE = 1e-4  # of frames, which are about -1..1


class Stub(types.ModuleType):
    """Module in which every name is an empty torch module that takes any arguments."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Empty


class Empty(nn.Module):
    """Stands for classes that inference does not need."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()


@contextlib.contextmanager
def imports_from(folder: Path, *stubs: str) -> Iterator[None]:
    """Import from `folder`; afterwards its modules are forgotten.

    Args:
        folder: Clone of the project.
        stubs: Packages to replace, since inference does not use them.
    """
    before, path = set(sys.modules), list(sys.path)
    added = {name: Stub(name) for name in stubs if name not in sys.modules}
    sys.modules.update(added)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        roots = {item.stem for item in folder.iterdir()} | {name.split(".")[0] for name in added}
        for name in set(sys.modules) - before:
            if name.split(".")[0] in roots:
                del sys.modules[name]


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all float tensors but scalars, by name."""
    state = module.state_dict()
    return {key: tuple(x.shape) for key, x in state.items() if x.is_floating_point() and x.ndim}


def random_tensors(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Make tensors from their names, equal on all platforms; biases and norms are random, too."""
    tensors = {}
    for name, shape in shapes.items():
        generator = np.random.RandomState(zlib.crc32(name.encode()))
        values = generator.random_sample(tuple(shape)) * 2 - 1
        if len(shape) > 1:
            values *= math.sqrt(3 / math.prod(shape[1:]))
        elif name.endswith("running_var"):
            values = 1 + abs(values)
        else:
            values = 0.4 * values + name.endswith("weight")
        tensors[name] = torch.from_numpy(values).float()
    return tensors


def scramble(module: nn.Module) -> None:
    """Replace the weights of a module by `random_tensors`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module.load_state_dict(random_tensors(shapes_of(module)), strict=False)


def make_clip(batch: int, frames: int, height: int, width: int) -> Tensor:
    """Make a random clip [B, 3, T, H, W] in -1..1 of 256 levels, with areas of other colors."""
    areas = torch.rand(batch, 3, -(-frames // 4), -(-height // 8), -(-width // 8))
    smooth = F.interpolate(areas, (frames, height, width), mode="trilinear")
    pixels = 0.8 * smooth + 0.2 * torch.rand(batch, 3, frames, height, width)
    return (pixels * 255).round() / 127.5 - 1


def random_clip(shape: Sequence[int], seed: int) -> Tensor:
    """Make a clip with values in -1..1, with the same values in every release."""
    values = np.random.RandomState(seed).uniform(-1, 1, shape)
    return torch.from_numpy(values.astype(np.float32))


def best_seconds(calls: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Time the calls in turns; returns the least CPU seconds of each."""
    least = dict.fromkeys(calls, math.inf)
    for _ in range(runs):
        for name, call in calls.items():
            least[name] = min(least[name], seconds(call, 1))
    return least


def speed_cells(found: Mapping[str, Any]) -> list[str]:
    """Format seconds of the original and of vtok, and their ratio, for encoding and decoding."""
    cells = []
    for work in ("encode", "decode"):
        theirs, mine = found[f"{work} original"], found[f"{work} vtok"]
        cells += [f"{theirs:.2f}", f"{mine:.2f}", f"{theirs / mine:.2f}x"]
    return cells


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Return the shortest CPU time of several calls."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two tensors, infinite if their shapes differ."""
    return (one - other).abs().max().item() if one.shape == other.shape else float("inf")


def stream(
    tokenizer: Tokenizer, clip: Tensor, codes: Tensor, steps: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Encode a clip and decode codes in chunks of latent steps; the last number is repeated.

    Returns:
        Latents and frames, each joined over the chunks.
    """
    latents, frames = [], []
    temporal, begin = tokenizer.geometry.temporal_compression, 0
    into, out = tokenizer.new_state(), tokenizer.new_state()
    while begin < codes.shape[2]:
        end = begin + steps[min(len(latents), len(steps) - 1)]
        first, last = (max(0, 1 + (step - 1) * temporal) for step in (begin, end))
        latents.append(tokenizer.encode_latents(clip[:, :, first:last], into))
        frames.append(tokenizer.decode(codes[:, :, begin:end], state=out))
        begin = end
    return torch.cat(latents, 2), torch.cat(frames, 2)


def agrees(found: dict[str, Any]) -> bool:
    """Tell whether all codes are equal and all frames within the tolerance."""
    close = max(found["frames apart"], found["prefix and chunks apart"] or 0.0) < TOLERANCE
    return found["codes equal"] == 1.0 and close


def report(name: str, found: dict[str, Any], as_json: bool) -> None:
    """Print the result of a case."""
    if as_json:
        print(json.dumps({"case": name, **found}), flush=True)
        return
    values = {key: f"{value:.3g}" for key, value in found.items() if isinstance(value, float)}
    rest = {key: value for key, value in found.items() if key not in values}
    print(
        f"{name}: " + ", ".join(f"{key} {x}" for key, x in {**rest, **values}.items()), flush=True
    )


def run_script(
    description: str,
    cases: Mapping[str, Case],
    full: Mapping[str, Case],
    compare: Callable[[Case, Path, int], dict[str, Any]],
    write_golden: Callable[[Path, Path], None],
) -> None:
    """Parse the options of a parity script and print a line for each case.

    Args:
        description: Text of the help.
        cases: Small cases by name.
        full: Cases of the published width, which run if they are asked for.
        compare: Compares a case with the original in a folder, timing a number of repeats.
        write_golden: Stores the results of the original in a folder as a file of the tests.

    Raises:
        SystemExit: A case differs; the message names it.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--original", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--only", metavar="CASE", choices=[*cases, *full])
    parser.add_argument("--full", action="store_true", help="the full published width, too")
    parser.add_argument("--repeats", type=int, default=3, help="times are the shortest of these")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--golden", metavar="FILE", type=Path, help="write the file of the tests")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.golden:
        write_golden(args.original, args.golden)
        return
    failed = []
    for name, case in {**cases, **(full if args.full or args.only else {})}.items():
        if args.only in (None, name):
            found = compare(case, args.original, args.repeats)
            report(name, found, args.json)
            if not agrees(found):
                failed.append(name)
    if failed:
        sys.exit(f"not equal: {', '.join(failed)}")
