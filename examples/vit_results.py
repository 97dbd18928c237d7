"""Results file of the ViT experiment, and the table made from it."""

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vtok._files import atomic_output
from vtok.errors import InputError, UsageError

HEADER = (
    "variant",
    "MMAC per image",
    "MMAC vs. plain",
    "images/s vs. plain",
    "seeds",
    "accuracy %",
    "vs. plain, points",
)


@dataclass(frozen=True)
class Run:
    """Result of one training run."""

    variant: str
    seed: int
    correct: int
    tested: int
    seconds: float


def accuracy(run: Run) -> float:
    """Compute the accuracy in percent."""
    return 100 * run.correct / run.tested


class Results:
    """Content of a results file; a missing file counts as empty.

    Attributes:
        setting: Data and training settings of the runs.
        operations: Multiply-adds of one image, by variant.
        speeds: Images/s relative to the plain variant.
        runs: Runs in the order in which they ended.
    """

    def __init__(self, path: Path, variants: list[str]) -> None:
        self.path, self.variants = path, variants
        self.setting: dict[str, Any] = {}
        self.operations: dict[str, int] = {}
        self.speeds: dict[str, float] = {}
        self.runs: list[Run] = []
        if path.exists():
            self._load()

    def _load(self) -> None:
        try:
            content = json.loads(self.path.read_text())
            self.setting = dict(content["setting"])
            self.operations = {name: int(value) for name, value in content["operations"].items()}
            self.speeds = {name: float(value) for name, value in content["speeds"].items()}
            kinds = Run.__annotations__.items()
            entries = content["runs"]
            self.runs = [Run(*(kind(entry[name]) for name, kind in kinds)) for entry in entries]
            known = [accuracy(run) >= 0 and run.variant in self.variants for run in self.runs]
        except (
            OSError,
            ArithmeticError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as exc:
            raise InputError(f"{self.path}: no results of this experiment ({exc!r})") from exc
        if not all(known):
            raise InputError(f"{self.path}: has runs of variants unknown to this experiment")

    def begin(self, setting: dict[str, Any]) -> None:
        """Set the setting, which must equal that of the runs so far.

        Raises:
            UsageError: The runs in the file have another setting or other images.
        """
        for name, value in self.setting.items():
            if setting.get(name) != value and name != "data":
                raise UsageError(
                    f"{self.path}: was made with {name} {value}, not {setting.get(name)}; "
                    "give another --results"
                )
        self.setting = setting

    def has(self, variant: str, seed: int) -> bool:
        """Return True if this run is done."""
        return any((run.variant, run.seed) == (variant, seed) for run in self.runs)

    def save(self) -> None:
        """Write the file atomically."""
        content = {
            "setting": self.setting,
            "operations": self.operations,
            "speeds": self.speeds,
            "runs": [asdict(run) for run in self.runs],
        }
        with atomic_output(self.path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


def rows(results: Results) -> list[dict[str, Any]]:
    """Make one row per variant with results; missing figures are None.

    `difference` is the mean over seeds of the accuracy minus that of the plain variant with the
    same seed; `*_error` are standard errors of these means.
    """
    plain = {run.seed: accuracy(run) for run in results.runs if run.variant == "plain"}
    table = []
    for name in results.variants:
        own = {run.seed: accuracy(run) for run in results.runs if run.variant == name}
        if not own and name not in results.operations:
            continue
        differences = [value - plain[seed] for seed, value in own.items() if seed in plain]
        differences = [] if name == "plain" else differences
        row = {"variant": name, "operations": results.operations.get(name)}
        row["operations_of_plain"] = _ratio(row["operations"], results.operations.get("plain"))
        row |= {"speed_of_plain": results.speeds.get(name), "seeds": len(own)}
        row["accuracy"], row["accuracy_error"] = _mean_and_error(list(own.values()))
        row["difference"], row["difference_error"] = _mean_and_error(differences)
        table.append(row)
    return table


def _ratio(part: Any, whole: Any) -> float | None:
    return part / whole if part and whole else None


def _mean_and_error(values: list[float]) -> tuple[float | None, float | None]:
    """Compute the mean, and its standard error if there are two values or more."""
    mean = statistics.mean(values) if values else None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return mean, error


def markdown(results: Results) -> str:
    """Format the table in Markdown."""
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1))]
    for row in rows(results):
        lines.append(
            (
                row["variant"],
                _shown(row["operations"] and row["operations"] / 1e6, ".1f"),
                _shown(row["operations_of_plain"], ".1%"),
                _shown(row["speed_of_plain"], ".2f"),
                str(row["seeds"]),
                _with_error(row["accuracy"], row["accuracy_error"], ".2f"),
                _with_error(row["difference"], row["difference_error"], "+.2f"),
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _with_error(value: float | None, error: float | None, form: str) -> str:
    return _shown(value, form) + ("" if error is None else f" ± {error:.2f}")
