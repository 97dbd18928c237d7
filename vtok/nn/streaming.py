"""What causal layers remember between the chunks of one video."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class StreamState:
    """Memory of one pass (encoder or decoder) over one video, carried from chunk to chunk.

    Start each video with a fresh one. It is empty before the first chunk, and each causal layer
    keeps there the few past frames that its next output needs.
    """

    memory: dict[nn.Module, Tensor] = field(default_factory=dict)

    def past(self, layer: nn.Module) -> Tensor | None:
        """What `layer` remembered of the chunk before; None at the start of the video."""
        return self.memory.get(layer)

    def keep(self, layer: nn.Module, recent: Tensor) -> None:
        """Remember `recent` for `layer` until the next chunk."""
        self.memory[layer] = recent

    def clone(self) -> StreamState:
        """An independent copy, to try a chunk without committing to it."""
        return StreamState({layer: past.clone() for layer, past in self.memory.items()})

    @property
    def started(self) -> bool:
        """Whether a chunk has gone through already."""
        return bool(self.memory)


@dataclass(frozen=True)
class Context:
    """What every layer is given beside its input.

    Attributes:
        state: memory of the stream, or None where the input is the whole clip.
        cond: condition vectors [B, dim_cond], or None.
    """

    state: StreamState | None = None
    cond: Tensor | None = None

    def past(self, layer: nn.Module) -> Tensor | None:
        """What `layer` remembered of the chunk before; None at the start of the video."""
        return None if self.state is None else self.state.past(layer)

    def remember(self, layer: nn.Module, recent: Tensor) -> None:
        """Keep `recent` for `layer` until the next chunk (a copy: a view would keep it all)."""
        if self.state is not None:
            self.state.keep(layer, recent.detach().clone())


class CausalLayer(nn.Module):
    """A layer on [B, C, T, H, W] whose output never depends on later frames.

    Attributes:
        lookback: how many steps of the finer of its grids back it reads; None where unbounded.
    """

    lookback: int | None = 0

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Apply the layer to one chunk."""
        raise NotImplementedError
