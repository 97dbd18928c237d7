"""The configuration of a training run: a frozen dataclass, validated once."""

from __future__ import annotations

import dataclasses
import json
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtok._files import atomic_output
from vtok.errors import InputError, OutputError, UsageError
from vtok.nn.config import PRESETS, TokenizerConfig

SCHEDULES, PRECISIONS = ("cosine", "linear"), ("auto", "float32", "bfloat16")
# A run that is taken up again may change these: they have no say in what a step does.
FREE = frozenset(
    {"steps", "validate_every", "save_every", "keep", "workers", "cache", "cache_gib"}
)  # fmt: skip
MOST = 10**9
WINDOW = 11  # pixels, of MS-SSIM
RECONSTRUCTION = ("l1", "mse", "rmse", "ms_ssim")
COUNTS = {  # whole numbers and the least that each may be
    "steps": 1, "batch": 1, "accumulate": 1, "frames": 1, "crop": 8, "warm_up": 0, "decay_from": 0,
    "entropy_steps": 0, "base_stages": 1, "adversarial_from": 0, "validate_every": 1,
    "save_every": 1, "keep": 1, "seed": 0, "workers": 0,
}  # fmt: skip
SHARES = ("photo_share", "final_rate", "base_share", "all_share")
AMOUNTS = (
    "learning_rate", "adamw_learning_rate", "weight_decay", "clip_gradients", "l1", "mse", "rmse",
    "ms_ssim", "entropy", "entropy_start", "commitment", "adversarial", "cache_gib",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a training run does, but its data.

    Args:
        preset: architecture to train, of `vtok.config.PRESETS`.
        model: fields of `TokenizerConfig` that replace the preset's.
        init: checkpoint to start from, by name or file; tensors that are larger here are widened
            (see `vtok.training.learner`). Empty: fresh weights.
        steps: optimizer steps in all; the rates fall to the end of them.
        batch: clips of one forward pass, over which the entropy of a bit is taken.
        accumulate: forward passes whose gradients make one step, in each process.
        frames: length of a clip.
        crop: its height and width, in pixels.
        photo_share: share of clips that a moving camera makes from photos, 0..1.
        learning_rate: of Muon, for the matrices inside.
        adamw_learning_rate: of AdamW, for everything else.
        weight_decay: share of each matrix taken off at learning rate 1, decoupled.
        warm_up: steps over which the rates rise.
        decay_from: step at which the rates begin to fall.
        schedule: how they fall, `cosine` or `linear`.
        final_rate: what they end at, as a share of the full rate, 0..1.
        clip_gradients: largest norm of the gradient; 0 leaves it as it is.
        ema: decay of the running mean of the weights, which is then what is measured and kept;
            0 is none.
        precision: what forward passes compute in: `float32`, `bfloat16`, or `auto`, which is
            bfloat16 where the hardware has it.
        l1: weight of the mean absolute error, pixels in -1..1.
        mse: weight of the mean squared error.
        rmse: weight of the root of each clip's mean squared error.
        ms_ssim: weight of 1 - MS-SSIM.
        entropy: weight of the quantizer's entropy loss.
        entropy_start: what that weight falls from, linearly.
        entropy_steps: over how many steps; 0 for the same weight throughout.
        commitment: weight of the quantizer's commitment loss.
        base_stages: how many stages a clip uses with chance `base_share`.
        base_share: that chance, 0..1.
        all_share: chance that a clip uses all stages, 0..1; the others use any number.
        adversarial: weight of the adversarial loss; 0 is none.
        adversarial_from: step at which it begins.
        validate_every: steps between validations.
        save_every: steps between saved states.
        keep: how many of the last states are kept.
        seed: of the first weights and of everything drawn.
        workers: processes that read data; 0 picks a number.
        cache: folder for decoded frames; empty is one inside the run.
        cache_gib: the most space it takes, in GiB; 0 for none at all.
    """

    preset: str = "vtok-base"
    model: Mapping[str, Any] = field(default_factory=dict)
    init: str = ""
    steps: int = 3000
    batch: int = 4
    accumulate: int = 1
    frames: int = 9
    crop: int = 128
    photo_share: float = 0.5
    learning_rate: float = 0.01
    adamw_learning_rate: float = 0.002
    weight_decay: float = 0.0
    warm_up: int = 50
    decay_from: int = 0
    schedule: str = "cosine"
    final_rate: float = 0.002
    clip_gradients: float = 1.0
    ema: float = 0.0
    precision: str = "auto"
    l1: float = 0.25
    mse: float = 0.0
    rmse: float = 1.0
    ms_ssim: float = 0.0
    entropy: float = 0.02
    entropy_start: float = 0.1
    entropy_steps: int = 200
    commitment: float = 0.05
    base_stages: int = 2
    base_share: float = 0.4
    all_share: float = 0.3
    adversarial: float = 0.0
    adversarial_from: int = 0
    validate_every: int = 500
    save_every: int = 100
    keep: int = 3
    seed: int = 0
    workers: int = 0
    cache: str = ""
    cache_gib: float = 8.0

    def __post_init__(self) -> None:
        """Validate every field.

        Raises:
            UsageError: naming the field, the value found and what is expected.
        """
        for name, least in COUNTS.items():
            value = getattr(self, name)
            valid = type(value) is int and least <= value <= MOST
            _require(valid, name, value, f"a whole number from {least} to {MOST}")
        for name in (*SHARES, *AMOUNTS, "ema"):
            value = getattr(self, name)
            most = 1.0 if name in SHARES else float(MOST)
            valid = type(value) in (int, float) and 0 <= value <= most  # no NaN either
            _require(valid, name, value, f"a number from 0 to {most:g}")
            object.__setattr__(self, name, float(value))  # TOML files say 1 for 1.0
        _require(self.ema < 1, "ema", self.ema, "a number from 0 to below 1")
        self._check_choices()
        self._check_model()

    def _check_choices(self) -> None:
        for name in ("init", "cache"):
            _require(isinstance(getattr(self, name), str), name, getattr(self, name), "a text")
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            value = getattr(self, name)
            _require(value in known, name, value, f"one of {', '.join(known)}")
        if not any(getattr(self, name) for name in RECONSTRUCTION):
            raise UsageError(f"expected a weight above 0 for one of {', '.join(RECONSTRUCTION)}")
        share = self.base_share + self.all_share
        _require(share <= 1, "all_share", self.all_share, "at most 1 together with base_share")
        fits = self.crop >= WINDOW or not self.ms_ssim
        _require(fits, "crop", self.crop, f"at least {WINDOW}, which ms_ssim needs")

    def _check_model(self) -> None:
        _require(self.preset in PRESETS, "preset", self.preset, f"one of {', '.join(PRESETS)}")
        _require(isinstance(self.model, Mapping), "model", self.model, "a table")
        # what a TOML file gives and what it was written from must compare equal
        object.__setattr__(self, "model", {key: plain(v) for key, v in self.model.items()})
        _require(None not in self.model.values(), "model", None, "values that TOML has")
        for name, expected in (("dim_cond", None), ("channels", 3)):  # clips are all there is
            value = getattr(self.tokenizer, name)
            _require(value == expected, f"model.{name}", value, f"{expected}, for training")

    @property
    def tokenizer(self) -> TokenizerConfig:
        """The architecture: the preset with what `model` replaces.

        Raises:
            UsageError: for a key or value that no tokenizer has.
        """
        try:
            return TokenizerConfig.from_dict({**PRESETS[self.preset].to_dict(), **self.model})
        except UsageError as exc:
            raise UsageError(f"model: {exc}") from exc

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """From plain types; what is missing has its default.

        Raises:
            UsageError: for unknown keys and bad values, each named.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(f"unknown training keys: {', '.join(unknown[:5])}")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def check_resumes(self, begun: TrainingConfig, where: str) -> None:
        """Refuse to go on with a run that another config began.

        Args:
            begun: the config that the run was begun with.
            where: the run.

        Raises:
            UsageError: naming the keys that differ and may not.
        """
        ours, theirs = self.to_dict(), begun.to_dict()
        differing = [key for key in ours if key not in FREE and ours[key] != theirs[key]]
        if differing:
            named = ", ".join(
                f"{key} ({reprlib.repr(theirs[key])}, now {reprlib.repr(ours[key])})"
                for key in differing
            )
            raise UsageError(
                f"{where}: was begun with another config: {named}; leave these as they were, "
                "or give another --out"
            )


def plain(value: Any) -> Any:
    """A value with its tuples made lists, as TOML and JSON give them."""
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise UsageError(f"{name}={reprlib.repr(value)}: expected {expected}")


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ACCELERATOR = "accelerator"
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read_config(path: Path, *, accelerated: bool = False) -> dict[str, Any]:
    """The keys of a config file.

    A table `[accelerator]` holds what is to be different where there is one: a recipe for a small
    machine can ask for larger batches and crops on a large one.

    Args:
        path: the TOML file.
        accelerated: whether the run is on an accelerator.

    Raises:
        InputError: if the file is missing or cannot be read.
        UsageError: if it is no TOML.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"{path}: no TOML ({exc})") from exc
    faster = data.pop(ACCELERATOR, {})
    if not isinstance(faster, dict):
        raise UsageError(f"{path}: {ACCELERATOR}: expected a table")
    return merged(data, faster) if accelerated else data


def write_config(path: Path, config: TrainingConfig) -> None:
    """Write a config as TOML, atomically, in place of what is there.

    Raises:
        OutputError: if it cannot be written.
    """
    table = config.to_dict()
    model = table.pop("model")
    lines = [f"{key} = {_toml(value)}" for key, value in table.items()]
    lines += ["", "[model]", *(f"{key} = {_toml(value)}" for key, value in model.items())]
    try:
        with atomic_output(path, overwrite=True) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written ({exc.strerror})") from exc


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """What `--set key=value` says, each value as TOML, or as text where it is none.

    `model.num_stages=4` sets a key of a table.

    Raises:
        UsageError: for one without a key or a value.
    """
    data: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        names = key.strip().split(".")
        if not equals or len(names) > 2 or not all(map(BARE_KEY.fullmatch, names)):
            raise UsageError(f"--set {setting}: expected key=value, such as batch=8")
        value = _value(text.strip())
        data = merged(data, {names[0]: {names[1]: value}} if names[1:] else {names[0]: value})
    return data


def merged(data: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with what `over` says instead; tables are merged key by key."""
    result = dict(data)
    for key, value in over.items():
        before = result.get(key)
        tables = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(before, value) if tables else value  # type: ignore[arg-type]
    return result


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # quotes around a word would be tedious in a shell


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    # numbers, truth values and texts look alike in JSON and TOML
    return json.dumps(value, ensure_ascii=False)
