"""One optimizer step, and everything that it changes: model, average, discriminator, optimizers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vtok.errors import CheckpointError, UsageError
from vtok.models.checkpoint import load_checkpoint
from vtok.models.load import has_fast_bfloat16, require_own
from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.config import TrainingConfig
from vtok.training.losses import (
    PatchDiscriminator,
    hinge_loss,
    loss_parts,
    rate_share,
    squared_errors,
    weighted_sum,
    weights_at,
)
from vtok.training.metrics import StepTotals, entries_seen
from vtok.training.optimizers import Trained, make_critic_optimizer, make_optimizers
from vtok.training.processes import Processes

# factor of the random values in the new part of a widened decoder tensor: the decoder then starts
# close to what it was, and still has gradients for its new inputs
DECODER_SHARE = 0.3
SECOND_PASS = "second_pass."  # begins the names of its tensors

Sums = dict[str, Tensor]


@torch.no_grad()
def initialize_from(model: VideoTokenizer, name_or_path: str) -> list[str]:
    """Copy the weights of a checkpoint into a model with random weights.

    A larger tensor of the model is widened: the checkpoint's values come first, and the rest keeps
    its random values, times `DECODER_SHARE` in the decoder. Net2Net (arXiv 1511.05641) widens
    hidden units without changing the function; wider latents carry new information instead.

    A second pass of the encoder that the checkpoint lacks stays new: it starts as zero. One that
    the model lacks is left out: it fits the weights it was trained on only.

    Returns:
        Remarks for the user: what was widened, or left out.

    Raises:
        InputError: if there is no such checkpoint.
        CheckpointError: if it is damaged, has other layers or is wider.
    """
    loaded, info = load_checkpoint(name_or_path)
    require_own(info, "training from a checkpoint")
    source, target = loaded.state_dict(), model.state_dict()
    theirs, ours = info.config.second_pass is not None, model.config.second_pass is not None
    remarks = ["without its second pass"] if theirs and not ours else []
    if theirs != ours:
        source, target = _first_pass(source), _first_pass(target)
    if differing := sorted(set(source) ^ set(target)):
        raise CheckpointError(
            f"{name_or_path}: its layers differ from those of the model to train: "
            f"{', '.join(differing[:3])}"
        )
    widened = []
    for name, tensor in target.items():
        values = source[name]
        if values.ndim != tensor.ndim or any(map(int.__gt__, values.shape, tensor.shape)):
            raise CheckpointError(
                f"{name_or_path}: tensor {name} of shape {list(values.shape)} does not fit into "
                f"{list(tensor.shape)}"
            )
        if values.shape != tensor.shape:
            widened.append(name)
            tensor.mul_(DECODER_SHARE if name.startswith("decoder") else 1.0)
        tensor[tuple(slice(size) for size in values.shape)] = values
    if widened:
        remarks.append(f"widened: {', '.join(widened)}")
    return remarks


def _first_pass(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in tensors.items() if not name.startswith(SECOND_PASS)}


class Learner:
    """A tokenizer in training.

    Each of the processes that share the work holds the same weights and takes the same steps.

    Attributes:
        model: the tokenizer, initialized from the config's seed.
        averaged: exponential moving average of the model, or None.
        critic: discriminator, or None.
    """

    def __init__(self, config: TrainingConfig, processes: Processes) -> None:
        self.config, self.processes = config, processes
        torch.manual_seed(config.seed)
        self.model = VideoTokenizer.from_config(config.tokenizer).to(processes.device)
        if config.only_second_pass:
            self.model.encoder.requires_grad_(False)
            self.model.decoder.requires_grad_(False)
        self.averaged = copy.deepcopy(self.model) if config.ema else None
        self.critic: nn.Module | None = None
        self.optimizers = make_optimizers(self.model, config)
        optimizers = [*self.optimizers]
        if config.adversarial:
            self.critic = PatchDiscriminator(config.tokenizer.channels).to(processes.device)
            optimizers.append(make_critic_optimizer(self.critic, config))
        self._all = Trained(
            optimizers, model=self.model, averaged=self.averaged, critic=self.critic
        )
        auto = config.precision == "auto" and has_fast_bfloat16(processes.device)
        self._bfloat16 = auto or config.precision == "bfloat16"
        self._forward = torch.compile(self._run, dynamic=False) if config.compile else self._run

    @property
    def best(self) -> VideoTokenizer:
        """The model to validate and to save."""
        return self.averaged or self.model

    def step(
        self, step: int, clips: Sequence[Tensor], used: Sequence[Tensor], factor: float = 1.0
    ) -> StepTotals:
        """Take one step; if the loss or the gradient is not finite, the weights do not change.

        Args:
            step: number of the step, from 0.
            clips: micro-batches of this process, float [B, 3, T, H, W] in -1..1.
            used: number of stages of each clip, int64 [B] for each micro-batch.
            factor: multiplies the scheduled learning rates.
        """
        share = 1 / (len(clips) * self.processes.count)
        self.model.train()
        self._all.zero_gradients()
        sums: Sums = {}
        for clip, stages in zip(clips, used, strict=True):
            found = self._backward(
                step, clip.to(self.processes.device, non_blocking=True), stages, share
            )
            sums = {name: value + sums.get(name, 0) for name, value in found.items()}
        for optimizer in self._all.optimizers:
            groups = optimizer.param_groups
            self.processes.sum_in_place([p.grad for g in groups for p in g["params"]])
        most = self.config.clip_gradients or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), most)
        self.processes.sum_in_place(list(sums.values()))
        totals = self._totals({name: value.cpu() for name, value in sums.items()}, float(norm))
        if totals.finite:
            self._update(step, factor)
        return totals

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that steps change."""
        return self._all.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of `tensors`."""
        self._all.load(tensors)

    def _run(self, clip: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents of a batch and its reconstruction, in float32."""
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=self._bfloat16):
            latents = self.model.encode_latents(clip).float()
            quantized = self.model.quantizer(latents, used)
            size = (clip.shape[3], clip.shape[4])
            recon = self.model.decode(quantized, num_frames=clip.shape[2], size=size)
        return latents, recon.float()

    def _reconstruct(self, clip: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return self._forward(clip, used)
        except RuntimeError as exc:
            if not type(exc).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(exc).strip().partition("\n")[0]
            raise UsageError(f"the network cannot be compiled ({reason}): compile=false") from exc

    def _backward(self, step: int, clip: Tensor, used: Tensor, share: float) -> Sums:
        """Add the gradients of a micro-batch; returns values to sum over all micro-batches."""
        weights = weights_at(step, self.config)
        quantizer, device = self.model.quantizer, self.processes.device
        latents, recon = self._reconstruct(clip, used.to(device))
        gamma = self.model.config.lfq_diversity_gamma
        parts = loss_parts(recon, clip, quantizer.losses(latents), gamma, weights)
        watched = dict(parts)
        if self.critic is not None and step >= self.config.adversarial_from:
            self.critic.requires_grad_(True)
            watched["critic"] = hinge_loss(self.critic(clip), self.critic(recon.detach()))
            (share * watched["critic"]).backward()  # type: ignore[no-untyped-call]
            self.critic.requires_grad_(False)  # only the tokenizer gets gradients of its score
            parts["adversarial"] = watched["adversarial"] = -self.critic(recon).mean()
        loss = weighted_sum({k: part for k, part in parts.items() if k in weights}, weights)
        (share * loss).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            sums = {f"part.{name}": share * part.detach() for name, part in watched.items()}
            sums["loss"] = share * loss.detach()
            sums["bits"] = share * quantizer.signs(latents).float().mean((0, 3, 4, 5))
            sums["seen"] = entries_seen(quantizer, latents).float()
            sums |= _psnr_sums(squared_errors(recon, clip), used.to(device), quantizer.num_stages)
        return sums

    def _update(self, step: int, factor: float) -> None:
        self._all.step(factor * rate_share(step, self.config))
        if self.averaged is not None:
            # forgets the initial weights fast
            decay = min(self.config.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                pairs = zip(self.averaged.parameters(), self.model.parameters(), strict=True)
                for mean, weight in pairs:
                    mean.lerp_(weight, 1 - decay)

    def _totals(self, sums: Sums, norm: float) -> StepTotals:
        clips = sums["clips"].int().tolist()
        decibels = (sums["decibels"] / sums["clips"].clamp(min=1)).tolist()
        starts = "part."
        return StepTotals(
            loss=float(sums["loss"]),
            parts={k.removeprefix(starts): float(v) for k, v in sums.items() if starts in k},
            psnr={k: (decibels[k], n) for k, n in enumerate(clips) if n},
            seen=sums["seen"] > 0,
            bits=sums["bits"],
            gradient_norm=norm,
        )


def _psnr_sums(errors: Tensor, used: Tensor, stages: int) -> Sums:
    """Sums over clips of PSNR in dB, and of clips, by number of stages."""
    decibels = 10 * torch.log10(4 / errors.clamp(min=1e-10))  # pixels span 2
    zeros = torch.zeros(stages + 1, device=errors.device)
    return {
        "decibels": zeros.index_add(0, used, decibels),
        "clips": zeros.index_add(0, used, torch.ones_like(decibels)),
    }
