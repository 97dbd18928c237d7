"""Muon and AdamW: the parameters each of them trains, and their states by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.config import TrainingConfig

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
BASE_RATE = "base_lr"
ADAMW_BETAS, CRITIC_BETAS = (0.9, 0.98), (0.5, 0.9)
SLOW_SHARE = 0.1
Optimizers = list[torch.optim.Optimizer]


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate the nearest orthogonal matrix by a quintic Newton-Schulz iteration.

    The iteration multiplies X by a polynomial of its Gram matrix G = X X^T. Here it runs on G, and
    X is multiplied once by the product of the polynomials: a third fewer operations for matrices
    three times as long as wide.

    Args:
        matrix: [rows, columns].
        steps: iterations; 5 bring the singular values to about 0.7 to 1.2.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    total = torch.eye(len(gram), device=gram.device)
    for step in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        total = factor @ total if step else factor
        if step < steps - 1:
            gram = factor @ gram @ factor
    x = total @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for convolution and linear weights, each flattened to [out, in * kernel].

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).

    `lr` is relative to the spectral norm of each matrix; Nesterov momentum; decoupled weight decay.
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


def make_optimizers(model: VideoTokenizer, config: TrainingConfig) -> Optimizers:
    """Create Muon for the inner matrices and AdamW for all other parameters.

    The first and last layers of encoder and decoder map pixels and codes: AdamW trains them. It
    trains the maps of a linear path, which start as principal components, at a tenth of its rate.
    """
    stacks = (model.encoder, model.decoder)
    ends = [stack.layers[i] for stack in stacks for i in (0, -1)]
    if model.second_pass is not None:
        ends += [model.second_pass.last, model.second_pass.linear]
    slow = [stack.linear for stack in stacks if stack.linear is not None]
    rates = config.learning_rate, config.adamw_learning_rate
    return split_optimizers(model, ends, *rates, config.weight_decay, slow)


def split_optimizers(
    model: nn.Module,
    ends: Iterable[nn.Module],
    muon_rate: float,
    adamw_rate: float,
    weight_decay: float = 0.0,
    slow: Sequence[nn.Module] = (),
) -> Optimizers:
    """Create Muon for the matrices of a model and AdamW for all other parameters.

    Muon changes every direction of a matrix alike, which suits maps from features to features.
    AdamW also trains the matrices of the layers `ends`, and those of `slow` at `SLOW_SHARE` of its
    rate, without weight decay.
    """
    outside = {module for end in (*ends, *slow) for module in end.modules()}
    held = [parameter for module in slow for parameter in module.parameters()]
    dense = (m for m in model.modules() if m not in outside and _is_dense(m))
    matrices = [m.get_parameter("weight") for m in dense]
    taken = {id(weight) for weight in (*matrices, *held)}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        {"params": held, "weight_decay": 0.0, "lr": SLOW_SHARE * adamw_rate},
    ]
    adamw = torch.optim.AdamW(groups, lr=adamw_rate, betas=ADAMW_BETAS)
    optimizers: Optimizers = [adamw]
    if matrices:
        optimizers.insert(0, Muon(matrices, lr=muon_rate, weight_decay=weight_decay))
    return [_with_base_rates(optimizer) for optimizer in optimizers]


def _is_dense(module: nn.Module) -> bool:
    """Tell whether a layer maps several features to several; a depthwise kernel is no matrix."""
    if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return False
    rows, columns = module.weight.shape[:2]
    return min(rows, columns) > 1 and getattr(module, "groups", 1) == 1


def make_critic_optimizer(critic: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Create AdamW for the discriminator, with little momentum, since its target moves."""
    rate = config.adamw_learning_rate / 10
    adamw = torch.optim.AdamW(critic.parameters(), lr=rate, betas=CRITIC_BETAS, weight_decay=0)
    return _with_base_rates(adamw)


def _with_base_rates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group[BASE_RATE] = group["lr"]
    return optimizer


def set_rates(optimizers: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Set every learning rate to a share of its full value."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group[BASE_RATE]


class Trained:
    """Modules and optimizers whose tensors are saved and restored together.

    Args:
        optimizers: optimizers of parameters of the modules.
        modules: modules by the prefix of their tensors; None is left out.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], **modules: nn.Module | None
    ) -> None:
        self.optimizers = optimizers
        self._modules = {prefix: module for prefix, module in modules.items() if module is not None}
        self._names: dict[torch.Tensor, str] = {
            parameter: f"{prefix}.{name}"
            for prefix, module in self._modules.items()
            for name, parameter in module.named_parameters()
        }

    def zero_gradients(self) -> None:
        """Drop all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self, share: float) -> None:
        """Update the weights that have gradients, at a share of the full learning rates."""
        set_rates(self.optimizers, share)
        for optimizer in self.optimizers:
            optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return weights by name, and states of optimizers as `optimizer.PARAMETER.ENTRY`."""
        weights = {
            f"{prefix}.{name}": tensor
            for prefix, module in self._modules.items()
            for name, tensor in module.state_dict().items()
        }
        return weights | {
            f"optimizer.{self._names[parameter]}.{entry}": tensor
            for optimizer in self.optimizers
            for parameter, entries in optimizer.state.items()
            for entry, tensor in entries.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of `tensors`."""
        for prefix, module in self._modules.items():
            start = f"{prefix}."
            found = {k[len(start) :]: t for k, t in tensors.items() if k.startswith(start)}
            module.load_state_dict(found)
        owners = {p: o for o in self.optimizers for g in o.param_groups for p in g["params"]}
        parameters = {name: parameter for parameter, name in self._names.items()}
        for optimizer in self.optimizers:
            optimizer.state.clear()
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                name, _, entry = key.removeprefix("optimizer.").rpartition(".")
                parameter = parameters[name]
                # AdamW keeps its step count on the CPU; cloned, since a tensor inside the bytes of
                # a file may not be aligned
                device = parameter.device if tensor.ndim else torch.device("cpu")
                owners[parameter].state[parameter][entry] = tensor.clone().to(device)
