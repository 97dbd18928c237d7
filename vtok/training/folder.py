"""The folder of a run: what lies where in it, and that only one run works on it."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtok.errors import InputError, OutputError, UsageError
from vtok.training.config import FREE, TrainingConfig
from vtok.training.configfile import merged, read_config, write_config
from vtok.training.state import state_files, step_of


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
