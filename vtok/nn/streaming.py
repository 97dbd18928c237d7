"""State that causal layers carry between the chunks of one video."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class StreamState:
    """State of the encoder or the decoder over one video, carried from chunk to chunk.

    Start each video with a new one. Each causal layer stores the past frames that it needs for its
    next output.
    """

    memory: dict[nn.Module, Tensor] = field(default_factory=dict)

    def past(self, layer: nn.Module) -> Tensor | None:
        """Return what `layer` stored at the previous chunk; None at the start of the video."""
        return self.memory.get(layer)

    def keep(self, layer: nn.Module, recent: Tensor) -> None:
        """Store `recent` for `layer` until the next chunk."""
        self.memory[layer] = recent

    def clone(self) -> StreamState:
        """Copy the state, to try a chunk without committing to it."""
        return StreamState({layer: past.clone() for layer, past in self.memory.items()})

    @property
    def started(self) -> bool:
        """True after the first chunk."""
        return bool(self.memory)


@dataclass(frozen=True)
class Context:
    """Inputs that every layer shares.

    Attributes:
        state: State of the stream; None if the input is the whole clip.
        cond: Condition vectors [B, dim_cond], or None.
    """

    state: StreamState | None = None
    cond: Tensor | None = None

    def past(self, layer: nn.Module) -> Tensor | None:
        """Return what `layer` stored at the previous chunk; None at the start of the video."""
        return None if self.state is None else self.state.past(layer)

    def remember(self, layer: nn.Module, recent: Tensor) -> None:
        """Store `recent` for `layer` until the next chunk."""
        if self.state is not None:  # a copy, since a view would keep the whole chunk in memory
            self.state.keep(layer, recent.detach().clone())


class CausalLayer(nn.Module):
    """Base class of layers on [B, C, T, H, W] whose output never depends on later frames.

    Attributes:
        lookback: Steps that the layer reads back, counted on the finer of its input and output
            grids; None if unbounded.
    """

    lookback: int | None = 0

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Apply the layer to one chunk."""
        raise NotImplementedError
