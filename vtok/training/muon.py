"""Muon: momentum made orthogonal, for the weight matrices inside a network.

After Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
`torch.optim.Muon` computes in bfloat16, which runs hundreds of times slower than float32 on CPUs
without bfloat16 arithmetic, and takes 2-D parameters only; this one takes convolution weights too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix with all singular values near 1, by a quintic Newton-Schulz iteration.

    Args:
        matrix: [rows, columns].
        steps: iterations; 5 bring the singular values to about 0.7 to 1.2.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-7)
    if x.is_cuda:
        x = x.bfloat16()  # the iteration mends its own rounding, and runs several times faster
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.T if tall else x
    return result.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for convolution and linear weights, each flattened to [out, in * kernel].

    Args:
        params: weights with at least two dimensions.
        lr: step size, as a share of each matrix's spectral scale.
        momentum: of the Nesterov kind.
        weight_decay: share of each weight taken off in a step of rate 1, decoupled as in AdamW.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    self._update(weight, weight.grad, group["lr"], group["momentum"])

    def _update(self, weight: Tensor, grad: Tensor, lr: float, momentum: float) -> None:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"].lerp_(grad, 1 - momentum)
        matrix = grad.lerp(average, momentum).flatten(1)
        scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        weight.add_(orthogonalize(matrix).view_as(weight), alpha=-lr * scale)
