"""The configuration of a training run, and the TOML files that hold it."""

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
from vtok.errors import InputError, OptionError, OutputError, UsageError
from vtok.nn.config import PRESETS, TokenizerConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEDULES, PRECISIONS = ("cosine", "linear"), ("auto", "float32", "bfloat16")
# A resumed run may change these: they do not affect the result of a step, except its rounding.
FREE = frozenset(
    {"steps", "validate_every", "save_every", "keep", "workers", "cache", "cache_gib", "compile"}
)  # fmt: skip
MAX_VALUE = 10**9
WINDOW = 11
"""Side of the MS-SSIM window in pixels."""
RECONSTRUCTION = ("l1", "mse", "rmse", "ms_ssim")
PLANS = ("stage_plan", "bit_plan")
COUNTS = {  # integer fields and their minima
    "steps": 1, "batch": 1, "accumulate": 1, "frames": 1, "crop": 8, "warm_up": 0, "decay_from": 0,
    "entropy_steps": 0, "base_stages": 1, "adversarial_from": 0, "validate_every": 1,
    "save_every": 1, "keep": 1, "seed": 0, "workers": 0,
}  # fmt: skip
SHARES = ("photo_share", "final_rate", "base_share", "all_share")
AMOUNTS = (
    "learning_rate", "adamw_learning_rate", "weight_decay", "clip_gradients", "l1", "mse", "rmse",
    "ms_ssim", "entropy", "entropy_start", "commitment", "adversarial", "cache_gib",
)  # fmt: skip
ACCELERATOR = "accelerator"
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class TrainingConfig:
    """Options of a training run, except its data.

    Args:
        preset: architecture to train, a key of `vtok.nn.config.PRESETS`.
        model: fields of `TokenizerConfig` that override the preset's.
        init: checkpoint to start from, by name or path; larger tensors of the new model are
            widened (see `vtok.training.learner`). Empty: random weights.
        steps: total number of optimizer steps; the learning rates decay until the last one.
        batch: clips in a micro-batch, over which the entropy of a bit is estimated.
        accumulate: micro-batches whose gradients are summed for a step, in each process.
        frames: length of a clip.
        crop: height and width of a clip in pixels.
        photo_share: share of clips made from photos with a moving virtual camera, 0..1.
        learning_rate: of Muon, for the inner matrices.
        adamw_learning_rate: of AdamW, for all other parameters.
        weight_decay: decoupled weight decay.
        warm_up: steps over which the learning rates rise.
        decay_from: step at which the learning rates begin to decay.
        schedule: form of the decay, `cosine` or `linear`.
        final_rate: share of the full learning rate at the last step, 0..1.
        clip_gradients: maximum norm of the gradient; 0 disables clipping.
        ema: decay of the exponential moving average of the weights, which is then what is
            validated and saved; 0 disables it.
        precision: type of forward passes: `float32`, `bfloat16`, or `auto`, which is bfloat16 where
            the hardware supports it.
        compile: compile the network by `torch.compile`, which needs a C++ compiler on a CPU.
        l1: weight of the mean absolute error, pixels in -1..1.
        mse: weight of the mean squared error.
        rmse: weight of the mean over clips of the root mean squared error.
        ms_ssim: weight of 1 - MS-SSIM.
        entropy: weight of the quantizer's entropy loss.
        entropy_start: initial value of that weight, which changes linearly.
        entropy_steps: number of steps of that change; 0 keeps the weight constant.
        commitment: weight of the quantizer's commitment loss.
        base_stages: number of stages that a clip uses with probability `base_share`.
        base_share: that probability, 0..1.
        all_share: probability that a clip uses all stages, 0..1; other clips use a random number.
        only_second_pass: train the second pass of the encoder alone, on the weights of `init`.
        adversarial: weight of the adversarial loss; 0 disables it.
        adversarial_from: step at which the adversarial loss starts.
        validate_every: steps between validations.
        save_every: steps between saved states.
        keep: number of states to keep.
        seed: of the initial weights and of all sampling.
        workers: processes that decode clips; 0 chooses a number.
        cache: folder for decoded frames; empty: a folder inside the run.
        cache_gib: maximum size of that folder in GiB; 0 disables the cache.

    Raises:
        OptionError: if a field is out of range.
        UsageError: if no reconstruction loss has a weight, or `model` is not valid.
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
    compile: bool = False
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
    only_second_pass: bool = False
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
        """Validate every field."""
        for name, least in COUNTS.items():
            value = getattr(self, name)
            valid = type(value) is int and least <= value <= MAX_VALUE
            _require(valid, name, value, f"a whole number from {least} to {MAX_VALUE}")
        for name in (*SHARES, *AMOUNTS, "ema"):
            value = getattr(self, name)
            most = 1.0 if name in SHARES else float(MAX_VALUE)
            valid = type(value) in (int, float) and 0 <= value <= most  # NaN fails too
            _require(valid, name, value, f"a number from 0 to {most:g}")
            object.__setattr__(self, name, float(value))  # TOML may say 1 for 1.0
        _require(self.ema < 1, "ema", self.ema, "a number from 0 to below 1")
        self._check_choices()
        self._check_model()

    def _check_choices(self) -> None:
        for name in ("init", "cache"):
            _require(isinstance(getattr(self, name), str), name, getattr(self, name), "a string")
        for name in ("compile", "only_second_pass"):
            value = getattr(self, name)
            _require(type(value) is bool, name, value, "true or false")
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
        # as TOML gives it, so that a config equals what was read back from its file
        object.__setattr__(self, "model", {key: _plain(v) for key, v in self.model.items()})
        _require(None not in self.model.values(), "model", None, "values that TOML can hold")
        for name, expected in (("dim_cond", None), ("channels", 3)):
            value = getattr(self.tokenizer, name)
            _require(value == expected, f"model.{name}", value, f"{expected}, for training")
        if self.only_second_pass:
            second = self.tokenizer.second_pass
            _require(second is not None, "model.second_pass", None, "one, for only_second_pass")
            _require(self.init != "", "init", "none", "the checkpoint that gets a second pass")

    @property
    def tokenizer(self) -> TokenizerConfig:
        """The architecture: the preset, overridden by `model`."""
        try:
            return TokenizerConfig.from_dict(_overridden(PRESETS[self.preset], self.model))
        except UsageError as exc:
            raise UsageError(f"model: {exc}") from exc

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """Build a config from plain types; missing keys have their defaults.

        Raises:
            UsageError: for unknown keys and invalid values, each named.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(f"unknown training keys: {', '.join(unknown[:5])}")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain types."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def check_resumes(self, begun: TrainingConfig, where: str) -> None:
        """Raise `UsageError` if this config may not resume a run, started with `begun`, `where`."""
        ours, theirs = self.to_dict(), begun.to_dict()
        differing = [key for key in ours if key not in FREE and ours[key] != theirs[key]]
        if differing:
            named = ", ".join(
                f"{key} ({reprlib.repr(theirs[key])}, now {reprlib.repr(ours[key])})"
                for key in differing
            )
            raise UsageError(
                f"{where}: was started with another config: {named}; keep these values, or choose "
                "another output folder"
            )


def _overridden(preset: TokenizerConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change fields of an architecture; its plan is cut to the stages, or dropped if it is short.

    A plan for codes of another size, or beside a plan among the changes, is dropped.
    """
    data = preset.to_dict()
    changed = {key for key, value in changes.items() if data.get(key) != value}
    stages = changes.get("num_stages", preset.num_stages)
    for plan in PLANS:
        kept = data.pop(plan, None)
        if (
            kept
            and type(stages) is int
            and not changed & {*PLANS, "codebook_size", "num_codebooks"}
        ):
            count = len(kept) // preset.num_stages * stages
            data[plan] = kept[:count] if 0 < count <= len(kept) else None
    return {**data, **changes}


def _plain(value: Any) -> Any:
    """A value with its tuples turned into lists, as TOML and JSON give them."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise OptionError(name, reprlib.repr(value), expected)


def read_config(path: Path, *, accelerated: bool = False) -> dict[str, Any]:
    """Read the keys of a config file.

    With `accelerated`, a table `[accelerator]` overrides other keys, so that one recipe can ask for
    larger batches and crops there.

    Raises:
        InputError: if the file is missing or unreadable.
        UsageError: if it is not TOML.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"{path}: not valid TOML ({exc})") from exc
    faster = data.pop(ACCELERATOR, {})
    if not isinstance(faster, dict):
        raise UsageError(f"{path}: {ACCELERATOR}: expected a table")
    return merged(data, faster) if accelerated else data


def write_config(path: Path, config: TrainingConfig) -> None:
    """Write a config as TOML, atomically, replacing an existing file."""
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
    """Parse `key=value` settings; a value is TOML, or else plain text.

    `model.num_stages=4` sets a key of a table. `OptionError` without a key or a value.
    """
    data: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        names = key.strip().split(".")
        if not equals or len(names) > 2 or not all(map(BARE_KEY.fullmatch, names)):
            raise OptionError("set", setting, "key=value, such as batch=8")
        value = _value(text.strip())
        data = merged(data, {names[0]: {names[1]: value}} if names[1:] else {names[0]: value})
    return data


def merged(data: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `data` overridden by `over`; tables are merged key by key."""
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
        return text  # a word without quotes, as one types it in a shell


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    # numbers, booleans and strings are written alike in JSON and TOML
    return json.dumps(value, ensure_ascii=False)
