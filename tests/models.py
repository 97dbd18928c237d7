"""Small seeded tokenizers for tests: one of each kind of architecture."""

import torch

from vtok import VideoTokenizer
from vtok.models.load import LoadedTokenizer, load
from vtok.nn.config import PRESETS, TokenizerConfig

FAST = {
    "codebook_size": 64,
    "num_stages": 3,
    "patch_size": 2,
    "init_dim": 8,
    "input_conv_kernel_size": (1, 3, 3),
    "output_conv_kernel_size": (1, 3, 3),
    "pad_mode": "constant",
    "layers": (("space_time_patch", 16), ("causal_depthwise", 16), ("causal_depthwise", 16)),
    "decoder_init_dim": 8,
    "decoder_layers": (("depthwise", 8), ("space_time_patch", 16), ("causal_depthwise", 16)),
}
CLASSIC = {
    "codebook_size": 256,
    "num_codebooks": 2,
    "init_dim": 8,
    "input_conv_kernel_size": (3, 3, 3),
    "layers": (
        "residual",
        ("compress_space", 12),
        ("consecutive_residual", 2),
        ("compress_time", 16),
        "linear_attend_space",
        ("compress_time", 16),
        "attend_space",
        "attend_time",
        "gateloop_time",
    ),
}
CONDITIONED = {
    "codebook_size": 16,
    "init_dim": 8,
    "dim_cond": 4,
    "input_conv_kernel_size": (3, 3, 3),
    "layers": (
        "cond_residual",
        ("compress_space", 8),
        "residual",  # a plain layer after a conditioned one
        "cond_attend_space",
        "cond_linear_attend_space",
        ("compress_time", 8),
        "cond_attend_time",
    ),
}
LINEAR = {
    **FAST,
    "codebook_size": 8,
    "linear_path": True,
    "bit_plan": (0, 0, 1, 1, 2, 0, 3, 3, 4),
}
SECOND_PASS = {**LINEAR, "second_pass": (1, 2)}
ARCHITECTURES = {
    "fast": FAST, "classic": CLASSIC, "conditioned": CONDITIONED, "linear": LINEAR,
    "second_pass": SECOND_PASS,
}  # fmt: skip


def make_tokenizer(kind: str = "fast", seed: int = 0) -> VideoTokenizer:
    """A tokenizer whose every weight matters: nothing is left at a zero initial value."""
    torch.manual_seed(seed)
    tokenizer = VideoTokenizer(**ARCHITECTURES[kind])
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return tokenizer.eval()


def load_all() -> dict[str, LoadedTokenizer]:
    """Load `vtok-base`, and make a tiny tokenizer of each kind that streams."""
    base = load("vtok-base", device="cpu", dtype="float32")
    made = {"vtok-base": base}
    for kind in ("fast", "classic", "linear", "second_pass"):
        tokenizer = make_tokenizer(kind).requires_grad_(False)
        made[kind] = LoadedTokenizer(tokenizer, base.info, base.device, base.dtype)
    return made


def make_clip(frames: int, height: int = 32, width: int = 32, batch: int = 1, seed: int = 0):
    """A random smooth clip [B, 3, T, H, W] in -1..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, frames, 4, 4, generator=generator)
    clip = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")
    return clip.clamp(-1, 1)


def make_condition(kind: str, batch: int = 1):
    """The condition that an architecture needs, or None."""
    width = ARCHITECTURES[kind].get("dim_cond")
    return (
        None
        if width is None
        else torch.randn(batch, width, generator=torch.Generator().manual_seed(1))
    )


__all__ = [
    "ARCHITECTURES",
    "PRESETS",
    "TokenizerConfig",
    "load_all",
    "make_clip",
    "make_condition",
    "make_tokenizer",
]
