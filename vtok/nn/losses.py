"""Losses of the tokenizer: reconstruction and its parts by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtok.nn.quantize import QuantizerLosses


@dataclass(frozen=True)
class LossBreakdown:
    """The parts of the training loss, each a scalar.

    Attributes:
        recon_loss: mean absolute plus mean squared error, pixels in -1..1.
        lfq_aux_loss: weighted sum of the quantizer's losses.
        quantizer: those losses, unweighted.
    """

    recon_loss: Tensor
    lfq_aux_loss: Tensor
    quantizer: QuantizerLosses


def reconstruction_loss(recon: Tensor, clip: Tensor) -> Tensor:
    """Mean absolute plus mean squared error of two tensors of one shape; a scalar."""
    difference = recon - clip
    return difference.abs().mean() + difference.square().mean()
