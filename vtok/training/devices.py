"""One process or many: what each works on, and the sums over all of them.

Several processes are those of Hugging Face `accelerate`, the extra `vtok[train]`; one process works
without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtok.errors import UsageError
from vtok.models.load import pick_device
from vtok.training.launch import num_processes

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """This process alone.

    Attributes:
        device: where it computes.
        index: its number among `count`.
        count: how many there are.
    """

    def __init__(self, device: torch.device, index: int = 0, count: int = 1) -> None:
        self.device, self.index, self.count = device, index, count

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor of each process, in all of them."""
        return tensor

    def share(self, data: bytes) -> bytes:
        """The main process's bytes, in all of them; those of the others do not matter."""
        return data

    def wait(self) -> None:
        """Until all processes are here."""


class SeveralProcesses(Processes):
    """One of the processes that `accelerate launch` started."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(accelerator.device, accelerator.process_index, accelerator.num_processes)
        self._accelerator = accelerator

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor of each process, in all of them."""
        result: Tensor = self._accelerator.reduce(tensor, reduction="sum")
        return result

    def share(self, data: bytes) -> bytes:
        """The main process's bytes, in all of them."""
        from accelerate.utils import broadcast

        size = broadcast(torch.tensor([len(data)], device=self.device))
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_main and data:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return bytes(broadcast(content.to(self.device)).cpu().numpy())

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()


@contextmanager
def open_processes(device: str) -> Iterator[Processes]:
    """What `accelerate launch` started, or this process alone.

    Args:
        device: `auto`, or one of torch's names.

    Raises:
        UsageError: for a device that this machine does not have; where several processes were
            started and `accelerate` is missing.
    """
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
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")  # precision is the config's
    try:
        yield SeveralProcesses(accelerator)
    finally:
        accelerator.end_training()
