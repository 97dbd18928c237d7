"""The most memory that tensors take at one time while something is computed."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocated(TorchDispatchMode):
    """Counts storages that operations make, while any tensor on them lives.

    Also on the meta device, where nothing is allocated: so it tells ahead what a size would take.
    Buffers inside of operations are not seen, so what is really taken is more.

    Attributes:
        peak: bytes at the worst moment.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.peak = self._now = 0
        self._tensors: dict[int, int] = {}  # on a storage
        self._bytes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and see what it has made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        self.peak = max(self.peak, self._now)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._tensors:
            self._tensors[key], self._bytes[key] = 0, storage.nbytes()
            self._now += self._bytes[key]
        self._tensors[key] += 1
        weakref.finalize(tensor, self._forget, key)

    def _forget(self, key: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            del self._tensors[key]
            self._now -= self._bytes.pop(key)
