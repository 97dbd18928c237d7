"""The processes of a run: one, or those that Hugging Face accelerate started, and their signals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from vtok.errors import UsageError

if TYPE_CHECKING:  # the command line asks for `is_main_process` before it imports torch
    import torch
    from accelerate import Accelerator
    from torch import Tensor

# set by torch's launcher, which accelerate uses, and by three MPI implementations
COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def num_processes() -> int:
    """Return the number of processes that the launcher started; 1 without a launcher."""
    return _first(COUNTS, 1)


def is_main_process() -> bool:
    """Tell whether this process writes files and messages."""
    return _first(RANKS, 0) == 0


def _first(names: Sequence[str], default: int) -> int:
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), default)


class Processes:
    """This process alone: its device, its rank `index` among `count` processes."""

    def __init__(self, device: torch.device, index: int = 0, count: int = 1) -> None:
        self.device, self.index, self.count = device, index, count

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes files and messages."""
        return self.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensor over all processes."""
        return tensor

    def sum_in_place(self, tensors: Sequence[Tensor | None]) -> None:
        """Replace tensors by their sums over all processes, in a single exchange."""
        import torch

        found = [tensor for tensor in tensors if tensor is not None]
        if self.count > 1 and found:
            flat = self.sum(torch.cat([tensor.flatten() for tensor in found]))
            parts = torch.split(flat, [tensor.numel() for tensor in found])
            for tensor, part in zip(found, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def share(self, data: bytes) -> bytes:
        """Return the main process's bytes in every process."""
        return data

    def wait(self) -> None:
        """Wait for all processes."""


class SeveralProcesses(Processes):
    """One of the processes that `accelerate launch` started."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(accelerator.device, accelerator.process_index, accelerator.num_processes)
        self._accelerator = accelerator

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensor over all processes."""
        result: Tensor = self._accelerator.reduce(tensor, reduction="sum")
        return result

    def share(self, data: bytes) -> bytes:
        """Return the main process's bytes in every process."""
        import torch
        from accelerate.utils import broadcast

        size = broadcast(torch.tensor([len(data)], device=self.device))
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_main and data:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return bytes(broadcast(content.to(self.device)).cpu().numpy())

    def wait(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()


@contextmanager
def open_processes(device: str) -> Iterator[Processes]:
    """Join the processes that `accelerate launch` started, or use this process alone.

    Raises:
        UsageError: if this machine does not have the device, or accelerate is needed and missing.
    """
    from vtok.models.load import pick_device

    if num_processes() == 1:
        yield Processes(pick_device(device))
        return
    try:
        from accelerate import Accelerator
    except ImportError as exc:
        raise UsageError(
            "several processes need Hugging Face accelerate: pip install 'vtok[train]'"
        ) from exc
    on_cpu = pick_device(device).type == "cpu"
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")  # the config sets the precision
    try:
        yield SeveralProcesses(accelerator)
    finally:
        accelerator.end_training()


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Use this number of torch threads while the block runs; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Interrupts:
    """Records SIGINT or SIGTERM in `number`, so that the run saves first; a second one acts."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def end(self) -> None:
        """End the process as the recorded signal demands."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
