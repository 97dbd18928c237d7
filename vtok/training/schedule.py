"""What changes from step to step: rates, the entropy's weight, how many stages a clip uses."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vtok.training.config import TrainingConfig

STAGES_STREAM = 1  # keeps the draws of stages apart from those of clips, by the same seed
ADVERSARIAL_RAMP = 200


def rate_share(step: int, config: TrainingConfig) -> float:
    """The learning rates of a step, from 0, as a share of the full rates.

    They rise linearly over `warm_up` steps, and fall from `decay_from` on to `final_rate`, by a
    cosine or a straight line.
    """
    rising = (step + 1) / max(1, config.warm_up)
    length = max(1, config.steps - config.decay_from)
    done = min(1.0, max(0.0, (step - config.decay_from) / length))
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return min(1.0, rising, config.final_rate + (1 - config.final_rate) * left)


def entropy_weight(step: int, config: TrainingConfig) -> float:
    """The weight of the entropy loss: from `entropy_start` linearly to `entropy`."""
    if step >= config.entropy_steps:
        return config.entropy
    done = step / config.entropy_steps
    return config.entropy_start + done * (config.entropy - config.entropy_start)


def adversarial_weight(step: int, config: TrainingConfig) -> float:
    """The weight of the adversarial loss: none before `adversarial_from`, then rising.

    It rises over some hundred steps, in which a fresh discriminator learns to be of use.
    """
    rising = (step - config.adversarial_from) / ADVERSARIAL_RAMP
    return config.adversarial * min(1.0, max(0.0, rising))


def draw_stages(clips: range, stages: int, step: int, seed: int, config: TrainingConfig) -> Tensor:
    """How many stages each clip uses, int64 [len(clips)] in 1..stages.

    Args:
        clips: their numbers within the global batch: the same clip draws the same number however
            many processes there are.
        stages: of the quantizer.
        step: from 0.
        seed: of the run.
        config: for `base_stages`, `base_share` and `all_share`.
    """
    return torch.tensor([_draw(clip, stages, step, seed, config) for clip in clips])


def _draw(clip: int, stages: int, step: int, seed: int, config: TrainingConfig) -> int:
    rng = np.random.default_rng((seed, STAGES_STREAM, step, clip))
    chance = rng.random()
    if chance < config.base_share:
        return min(config.base_stages, stages)
    if chance < config.base_share + config.all_share:
        return stages
    return int(rng.integers(1, stages + 1))
