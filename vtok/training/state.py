"""States of a run: one safetensors file each, whole or not there, the last few kept."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vtok._files import atomic_output
from vtok.errors import CheckpointError, InputError, OutputError, UsageError
from vtok.models.checkpoint import weights_digest
from vtok.training.config import FREE, TrainingConfig, merged, read_config, write_config


class RunFolder:
    """The folder of a run.

    Args:
        path: need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name  # `.` has a name too
        self.config = path / "config.toml"
        self.states = path / "states"
        self.model = path / "model.safetensors"
        self.pictures = path / "pictures"
        self.cache = path / "cache"

    def resolve_config(
        self, file: Path | None, over: Mapping[str, Any], *, accelerated: bool
    ) -> TrainingConfig:
        """The config that a command line asks for: the file's, or the begun run's, or defaults.

        Args:
            file: a TOML file.
            over: keys that come last, such as `parse_settings` gives.
            accelerated: whether the run is on an accelerator, see `read_config`.

        Raises:
            InputError: if the file cannot be read.
            UsageError: for a bad key or value; where it does not fit the run that was begun.
        """
        begun = self._begun()
        base = begun.to_dict() if begun else {}
        if file is not None:
            base = read_config(file, accelerated=accelerated)
        config = TrainingConfig.from_dict(merged(base, over))
        if begun is not None and self._has_steps():
            config.check_resumes(begun, str(self.path))
        return config

    @contextmanager
    def opened(self, config: TrainingConfig) -> Iterator[None]:
        """Make the folder with the config in it, and keep other runs out while the block runs.

        The lock dies with its process, however that ends.

        Raises:
            OutputError: if it cannot be made, or another run works on it.
        """
        try:
            for path in (self.path, self.states, self.pictures):
                path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("w")
        except OSError as exc:
            raise OutputError(f"{exc.filename}: cannot be made ({exc.strerror})") from exc
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise OutputError(
                    f"{self.path}: another run works on it: wait, or give another --out"
                ) from exc
            self._tidy()
            write_config(self.config, config)
            yield

    def _has_steps(self) -> bool:
        """Whether there is anything that another config would spoil."""
        return any(step_of(path) > 0 for path in state_files(self.states))

    def _tidy(self) -> None:
        """Remove the half files that a killed process left; a state takes some space."""
        for folder in (self.path, self.states, self.pictures):
            for half in folder.glob(".vtok-*.part"):
                half.unlink(missing_ok=True)

    def _begun(self) -> TrainingConfig | None:
        if not self.config.exists():
            return None
        try:
            return TrainingConfig.from_dict(read_config(self.config))
        except (UsageError, InputError) as exc:
            raise UsageError(f"{self.config}: {exc}; mend it, or give another --out") from exc


def config_digest(config: TrainingConfig) -> str:
    """SHA-256 of all keys that have a say in what a step does."""
    fixed = {key: value for key, value in config.to_dict().items() if key not in FREE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


FORMAT, VERSION = "vtok.training_state", 1


@dataclass(frozen=True)
class State:
    """All that a run needs to go on.

    Attributes:
        step: how many steps were done.
        tensors: weights and what the optimizers remember, by name.
        facts: everything else, as JSON has it.
    """

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def to_bytes(state: State) -> bytes:
    """A state as a safetensors file."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "step": state.step,
        "facts": state.facts,
        "sha256": _digest(state.step, tensors, state.facts),
    }
    return save(tensors, metadata={"vtok": json.dumps(about)})


def from_bytes(data: bytes, where: str) -> State:
    """Read a state.

    Args:
        data: the file's content.
        where: what to call it in an error.

    Raises:
        CheckpointError: if it is damaged, something else, or of a later version.
    """
    try:
        tensors = load(data)  # has checked that the header is as long as it says
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["vtok"])
        form, version = about["format"], about["version"]
        state = State(int(about["step"]), tensors, dict(about["facts"]))
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as exc:
        raise CheckpointError(f"{where}: is damaged, or no state of a run") from exc
    if form != FORMAT or version != VERSION:
        raise CheckpointError(f"{where}: is of another version of vtok")
    if _digest(state.step, tensors, state.facts) != about["sha256"]:
        raise CheckpointError(f"{where}: is damaged: its values do not match their SHA-256")
    return state


def save_state(folder: Path, state: State, keep: int) -> None:
    """Write a state, atomically, and then remove all but the last `keep`.

    Raises:
        OutputError: if it cannot be written; older states are still there.
    """
    path = folder / f"step-{state.step:08d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_output(path, overwrite=True) as temporary:
            temporary.write_bytes(to_bytes(state))
    except (OSError, OutputError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise OutputError(
            f"{path}: the state cannot be written ({reason}); those before it are whole: make "
            "room and run the same command again"
        ) from exc
    for old in state_files(folder)[keep:]:
        old.unlink(missing_ok=True)


def state_files(folder: Path) -> list[Path]:
    """The states in a folder, the newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def step_of(path: Path) -> int:
    """How many steps a state holds, by its name; 0 where that says nothing."""
    number = path.stem.removeprefix("step-")
    return int(number) if number.isdecimal() else 0


def newest_state(folder: Path, say: Callable[[str], None]) -> bytes | None:
    """The newest state that is whole, as bytes; None where the run has none.

    Args:
        folder: of the states.
        say: told, in one line, of each that is damaged.

    Raises:
        CheckpointError: if there are states and none is whole.
    """
    files = state_files(folder)
    for path in files:
        try:
            data = path.read_bytes()
            from_bytes(data, str(path))
        except (OSError, CheckpointError) as exc:
            say(f"{exc}; going back to the state before it")
            continue
        return data
    if files:
        raise CheckpointError(f"{folder}: no state is whole: begin again with another --out")
    return None


def _digest(step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    """SHA-256 of everything in a state."""
    text = json.dumps([step, weights_digest(tensors), facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
