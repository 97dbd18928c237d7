"""The folder of a run: its lock, its config, and its states, one safetensors file each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vtok._files import atomic_output
from vtok.errors import CheckpointError, InputError, OutputError, UsageError
from vtok.models.checkpoint import weights_digest
from vtok.training.config import FREE, TrainingConfig, merged, read_config, write_config

FORMAT, VERSION = "vtok.training_state", 1


@contextmanager
def locked_folder(path: Path, *inner: str) -> Iterator[None]:
    """Create a folder and folders inside it, and keep other runs out while the block runs.

    The lock ends with its process. Partial files of killed processes are removed. `OutputError` if
    the folder cannot be created, or another run uses it.
    """
    folders = [path, *(path / name for name in inner)]
    lock = FileLock(path / "lock")
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as exc:
        raise OutputError(
            f"{path}: another run is using it: wait, or choose another output folder"
        ) from exc
    except OSError as exc:
        raise OutputError(f"{exc.filename}: cannot be created ({exc.strerror})") from exc
    try:
        for folder in folders:
            for part in folder.glob(".vtok-*.part"):
                part.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


class RunFolder:
    """The folder of a run; need not exist yet."""

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
        """Return the config to use: the file's, or the existing run's, or defaults.

        Keys of `over` override it; `accelerated` as in `read_config`.

        Raises:
            InputError: if the file cannot be read.
            UsageError: for an invalid key or value, or if the existing run used another config.
        """
        begun = self._begun()
        base = begun.to_dict() if begun else {}
        if file is not None:
            base = read_config(file, accelerated=accelerated)
        config = TrainingConfig.from_dict(merged(base, over))
        # a run without a step may start over with another config
        if begun is not None and any(step_of(path) > 0 for path in state_files(self.states)):
            config.check_resumes(begun, str(self.path))
        return config

    @contextmanager
    def opened(self, config: TrainingConfig) -> Iterator[None]:
        """Create and lock the folder, and write the config, see `locked_folder`."""
        with locked_folder(self.path, self.states.name, self.pictures.name):
            write_config(self.config, config)
            yield

    def _begun(self) -> TrainingConfig | None:
        """The config of the existing run."""
        if not self.config.exists():
            return None
        try:
            return TrainingConfig.from_dict(read_config(self.config))
        except (UsageError, InputError) as exc:
            raise UsageError(
                f"{self.config}: {exc}; repair it, or choose another output folder"
            ) from exc


def config_digest(config: TrainingConfig) -> str:
    """Return the SHA-256 of all keys that affect the result of a step."""
    fixed = {key: value for key, value in config.to_dict().items() if key not in FREE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class State:
    """Everything that a run needs to resume after a step: tensors, and facts as JSON types."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def to_bytes(state: State) -> bytes:
    """Serialize a state as a safetensors file."""
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
    """Read a serialized state, or raise `CheckpointError`; `where` names the file in errors."""
    try:
        tensors = load(data)  # checks the length of the header too
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["vtok"])
        form, version = about["format"], about["version"]
        state = State(int(about["step"]), tensors, dict(about["facts"]))
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as exc:
        raise CheckpointError(f"{where}: damaged, or not the state of a run") from exc
    if form != FORMAT or version != VERSION:
        raise CheckpointError(f"{where}: written by another version of vtok")
    if _digest(state.step, tensors, state.facts) != about["sha256"]:
        raise CheckpointError(f"{where}: damaged: its values do not match their SHA-256")
    return state


def save_state(folder: Path, state: State, keep: int) -> None:
    """Write a state atomically, and then remove all but the last `keep`."""
    path = folder / f"step-{state.step:08d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_output(path, overwrite=True) as temporary:
            temporary.write_bytes(to_bytes(state))
    except (OSError, OutputError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise OutputError(
            f"{path}: the state cannot be written ({reason}); earlier states are intact: free "
            "disk space and run the same command again"
        ) from exc
    for old in state_files(folder)[keep:]:
        old.unlink(missing_ok=True)


def state_files(folder: Path) -> list[Path]:
    """List the states in a folder, the newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def step_of(path: Path) -> int:
    """Return the step of a state according to its name; 0 for other names."""
    number = path.stem.removeprefix("step-")
    return int(number) if number.isdecimal() else 0


def newest_state(folder: Path, say: Callable[[str], None]) -> bytes | None:
    """Read the newest valid state; None if there is none. `say` is told of damaged ones.

    `CheckpointError` if there are states but none is valid.
    """
    files = state_files(folder)
    for path in files:
        try:
            data = path.read_bytes()
            from_bytes(data, str(path))
        except (OSError, CheckpointError) as exc:
            say(f"{exc}; using the state before it")
            continue
        return data
    if files:
        raise CheckpointError(f"{folder}: no valid state: start again in another output folder")
    return None


def _digest(step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    text = json.dumps([step, weights_digest(tensors), facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
