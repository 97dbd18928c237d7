"""Which weights Muon trains and which AdamW, and what the two remember, as named tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.config import TrainingConfig

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


Optimizers = list[torch.optim.Optimizer]
BASE_RATE = "base_lr"
ADAMW_BETAS, CRITIC_BETAS = (0.9, 0.98), (0.5, 0.9)


def make_optimizers(model: VideoTokenizer, config: TrainingConfig) -> Optimizers:
    """Muon for the matrices inside; AdamW for all else.

    Muon makes every direction of a matrix move alike, which suits what maps features to features.
    The first and last layers of both stacks map pixels and codes; a depthwise kernel is no matrix.
    """
    matrices = list(_inner_matrices(model))
    taken = {id(weight) for weight in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    decay = config.weight_decay
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.adamw_learning_rate, betas=ADAMW_BETAS)
    optimizers: Optimizers = [adamw]
    if matrices:
        optimizers.insert(0, Muon(matrices, lr=config.learning_rate, weight_decay=decay))
    return [_remember_rates(optimizer) for optimizer in optimizers]


def make_critic_optimizer(critic: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW for the discriminator, with little momentum: its target moves."""
    rate = config.adamw_learning_rate / 10
    adamw = torch.optim.AdamW(critic.parameters(), lr=rate, betas=CRITIC_BETAS, weight_decay=0)
    return _remember_rates(adamw)


def set_rates(optimizers: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Set every learning rate to a share of its full one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group[BASE_RATE]


def optimizer_tensors(
    optimizers: Sequence[torch.optim.Optimizer], names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """Everything that the optimizers remember, by `optimizer.PARAMETER.ENTRY`."""
    return {
        f"optimizer.{names[parameter]}.{entry}": tensor
        for optimizer in optimizers
        for parameter, entries in optimizer.state.items()
        for entry, tensor in entries.items()
    }


def load_optimizer_tensors(
    optimizers: Sequence[torch.optim.Optimizer],
    names: Mapping[Tensor, str],
    tensors: Mapping[str, Tensor],
) -> None:
    """Give back to fresh optimizers what `optimizer_tensors` took."""
    parameters = {name: parameter for parameter, name in names.items()}
    owners = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for optimizer in optimizers:
        optimizer.state.clear()
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            name, _, entry = key.removeprefix("optimizer.").rpartition(".")
            parameter = parameters[name]
            # a count of steps stays on the CPU, where AdamW keeps it; cloned, since a tensor
            # inside a file's bytes is not aligned as one of its own
            device = parameter.device if tensor.ndim else torch.device("cpu")
            copy = tensor.clone().to(device)
            owners[parameter].state[parameter][entry] = copy


def parameter_names(**modules: nn.Module | None) -> dict[Tensor, str]:
    """The name of every parameter of several modules, each under the name of its own."""
    return {
        parameter: f"{prefix}.{name}"
        for prefix, module in modules.items()
        if module is not None
        for name, parameter in module.named_parameters()
    }


def _inner_matrices(model: VideoTokenizer) -> Iterator[Tensor]:
    """Weights of linear layers and full convolutions, but those at the ends of the stacks."""
    stacks = (model.encoder, model.decoder)
    ends = {module for stack in stacks for i in (0, -1) for module in stack.layers[i].modules()}
    for module in model.modules():
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        if isinstance(module, kinds) and module not in ends:
            weight = module.weight
            if weight.shape[0] > 1 and weight.shape[1] > 1:  # a depthwise one has one input
                yield weight


def _remember_rates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group[BASE_RATE] = group["lr"]
    return optimizer
