"""Compare a mini ViT that reduces 64 patches to 8 or 4 learned tokens with a plain one.

    python examples/token_learner_vit.py             # MNIST digits; resumes an interrupted run
    python examples/token_learner_vit.py --data cifar10 --flip --results cifar10.json
    python examples/token_learner_vit.py --table     # print the results so far, without training

Seed k tests on the k-th fifth of the images and trains on the others. Within a seed all variants
use the same batches and crops, and the same initial values of shared weights. Nothing is selected
on the test images: accuracy is that of the last epoch.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from image_sets import LEAST_PER_CLASS, ImageSet, load_images
from torch import Tensor, nn
from vit import SIDE, VARIANTS, Variant, ViT, operations
from vit_results import Results, Run, accuracy, markdown, rows

from vtok._files import atomic_output
from vtok.errors import InputError, UsageError, VtokError

MARGIN = 4  # images of 52 pixels are cropped to 48
FOLDS = LEAST_PER_CLASS
SPEED_ROUNDS, SPEED_BATCH = 15, 64


@dataclass(frozen=True)
class Setting:
    """Training settings of a results file; the defaults are those of the Keras example."""

    epochs: int = 20
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    flip: bool = False


def split(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Split into training and test indices, stratified by class.

    Seeds 0 to 4 test on each image once; the next five use another partition.
    """
    generator = torch.Generator().manual_seed(seed // FOLDS)
    folds = torch.empty_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        folds[members] = torch.arange(len(members)) % FOLDS
    tested = folds == seed % FOLDS
    return (~tested).nonzero().flatten(), tested.nonzero().flatten()


def to_input(images: Tensor) -> Tensor:
    """Convert uint8 in 0..255 to float in -1..1."""
    return images.float() / 127.5 - 1


def augment(images: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """Crop each image at random, [B, C, 52, 52] -> [B, C, 48, 48], and flip half of them."""
    count = len(images)
    windows = images.unfold(2, SIDE, 1).unfold(3, SIDE, 1)  # [B, C, 5, 5, 48, 48]
    top, left = torch.randint(MARGIN + 1, (2, count), generator=generator)
    crops = windows[torch.arange(count), :, top, left]
    mirrored = torch.rand(count, generator=generator) < 0.5  # drawn even if unused, for equal crops
    return torch.where(mirrored[:, None, None, None], crops.flip(-1), crops) if flip else crops


def batches(images: ImageSet, chosen: Tensor, setting: Setting, seed: int) -> Iterator[Any]:
    """Yield batches of all epochs, float [B, C, 48, 48] and labels [B], determined by the seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(setting.epochs):
        order = chosen[torch.randperm(len(chosen), generator=generator)]
        for indices in order.split(setting.batch):
            crops = augment(images.images[indices], setting.flip, generator)
            yield to_input(crops), images.labels[indices]


def count_correct(model: nn.Module, images: ImageSet, chosen: Tensor) -> int:
    """Count correctly classified images among the chosen ones, from centre crops."""
    model.eval()
    inside = slice(MARGIN // 2, MARGIN // 2 + SIDE)
    correct = 0
    with torch.no_grad():
        for indices in chosen.split(SPEED_BATCH):
            logits = model(to_input(images.images[indices][..., inside, inside]))
            correct += int((logits.argmax(dim=1) == images.labels[indices]).sum())
    return correct


def train(variant: Variant, seed: int, images: ImageSet, setting: Setting) -> Run:
    """Train one variant on one split and test it once."""
    train_on, test_on = split(images.labels, seed)
    torch.manual_seed(seed)
    model = ViT(variant, images.images.shape[1], len(images.classes)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay
    )
    steps = setting.epochs * -(-len(train_on) // setting.batch)
    started = time.monotonic()
    for step, (inputs, labels) in enumerate(batches(images, train_on, setting, seed), start=1):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == steps:
            report(f"{variant.name} seed {seed}", step, steps, started, loss.item())
    correct = count_correct(model, images, test_on)
    return Run(variant.name, seed, correct, len(test_on), round(time.monotonic() - started, 1))


def report(what: str, step: int, steps: int, started: float, loss: float) -> None:
    """Print a line of progress, overwritten by the next one on a terminal."""
    rate = step / (time.monotonic() - started)
    line = f"{what}: step {step}/{steps}, loss {loss:.3f}, {rate:.2f} steps/s, "
    line += f"{(steps - step) / rate:.0f} s left"
    end = "\r" if sys.stderr.isatty() and step < steps else "\n"
    print(line, file=sys.stderr, end=end, flush=True)


def measure_speed(variants: list[Variant], channels: int, classes: int) -> dict[str, float]:
    """Measure images/s of the forward pass of each variant, relative to the plain one.

    Variants take turns in batches of 64, and the result is the median ratio over the rounds.
    """
    models = {variant.name: ViT(variant, channels, classes).eval() for variant in variants}
    models.setdefault("plain", ViT(Variant(), channels, classes).eval())
    inputs = torch.randn(SPEED_BATCH, channels, SIDE, SIDE)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for _ in range(SPEED_ROUNDS + 1):  # the first one warms up
            for name, model in models.items():
                started = time.perf_counter()
                model(inputs)
                seconds[name].append(time.perf_counter() - started)
    times = {name: torch.tensor(values[1:]) for name, values in seconds.items()}
    return {name: round(float((times["plain"] / own).median()), 3) for name, own in times.items()}


def at_least(least: int) -> Callable[[str], int]:
    """Make a parser of whole numbers with a lower bound."""

    def whole(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return whole


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=f"Variants: {' '.join(VARIANTS)}"
    )
    default = Setting()
    parser.add_argument("--data", type=Path, help="folder of class folders, or of x.npy and y.npy")
    parser.add_argument("--results", type=Path, default=Path("vit.json"), help="file of all runs")
    parser.add_argument("--variants", nargs="+", metavar="NAME", default=list(VARIANTS))
    parser.add_argument("--seeds", type=at_least(0), default=5, metavar="N", help="0: no training")
    parser.add_argument("--epochs", type=at_least(1), default=default.epochs, metavar="N")
    parser.add_argument("--batch", type=at_least(1), default=default.batch, metavar="N")
    parser.add_argument("--flip", action="store_true", help="flip half of the images")
    parser.add_argument("--speed", action="store_true", help="measure speeds again")
    parser.add_argument("--table", action="store_true", help="print the results so far")
    parser.add_argument("--page", type=Path, help="replace the table in this page")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    args = parser.parse_args()
    if unknown := [name for name in args.variants if name not in VARIANTS]:
        raise UsageError(
            f"--variants {unknown[0]}: unknown variant; expected one of {' '.join(VARIANTS)}"
        )
    return args


def run_all(args: argparse.Namespace, results: Results) -> None:
    """Do the missing runs, seed by seed, so that partial results are comparable."""
    images = load_images(args.data, SIDE + MARGIN)
    setting = Setting(epochs=args.epochs, batch=args.batch, flip=args.flip)
    channels, classes = images.images.shape[1], len(images.classes)
    results.begin(
        {
            "data": images.source,
            "images": len(images.labels),
            "fingerprint": images.fingerprint(),
            **asdict(setting),
        }
    )
    chosen = [VARIANTS[name] for name in args.variants]
    for variant in chosen:
        results.operations[variant.name] = operations(variant, channels, classes)
    results.operations["plain"] = operations(Variant(), channels, classes)
    if args.speed or not {variant.name for variant in chosen} <= set(results.speeds):
        every = [VARIANTS[name] for name in {*args.variants, *results.speeds}]
        results.speeds = measure_speed(every, channels, classes)
    results.save()
    for seed in range(args.seeds):
        for variant in chosen:
            if not results.has(variant.name, seed):
                run = train(variant, seed, images, setting)
                results.runs.append(run)
                results.save()
                print(f"{run.variant} seed {seed}: {accuracy(run):.2f} %", file=sys.stderr)


def write_page(page: Path, results: Results) -> None:
    """Replace the table in a page, from its header to the next empty line."""
    before, header, after = page.read_text().partition(markdown(results).partition("\n")[0])
    if not header:
        raise InputError(f"{page}: has no table of this experiment to replace")
    rest = after.partition("\n\n")
    with atomic_output(page, overwrite=True) as temporary:
        temporary.write_text(before + markdown(results) + ("\n\n" + rest[2] if rest[1] else "\n"))


def main() -> None:
    """Do the missing runs, then print the table or write it to a page."""
    try:
        args = parse()
        results = Results(args.results, list(VARIANTS))
        if not args.table:
            run_all(args, results)
        if args.page:
            write_page(args.page, results)
        else:
            print(json.dumps(rows(results), indent=2) if args.json else markdown(results))
    except VtokError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes after the last run", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
