"""Which weights Muon trains and which AdamW, and what the two remember, as named tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.config import TrainingConfig
from vtok.training.muon import Muon

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
