"""States of a run: one safetensors file each, whole or not there, the last few kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vtok.atomic import atomic_output
from vtok.checkpoint import weights_digest
from vtok.errors import CheckpointError, OutputError

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
