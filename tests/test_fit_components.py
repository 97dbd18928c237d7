"""scripts/fit_components.py: the linear maps become the principal components of the blocks."""

import sys
from pathlib import Path

import torch
from models import ARCHITECTURES

from vtok import VideoTokenizer

sys.path.append(str(Path(__file__).parent.parent / "scripts"))
from fit_components import blocks_of, components, set_components


def test_few_components_reproduce_clips_of_few_patterns() -> None:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(**ARCHITECTURES["linear"])
    count = tokenizer.quantizer.dim
    block = 0.1 * torch.randn(count, 3, 4, 4, 4)  # channels, frames, rows, columns

    def make_clip() -> torch.Tensor:
        parts = torch.einsum("ntyx,ncfpq->ctfypxq", 0.5 * torch.randn(count, 3, 4, 4), block)
        clip = parts.flatten(1, 2).flatten(2, 3).flatten(3, 4) + 0.1
        return torch.cat([clip[:, :1], clip], dim=1)[None]  # a first frame, then whole steps

    clips = [make_clip() for _ in range(30)]
    mean, basis, variance = components(blocks_of(tokenizer, clip) for clip in clips)
    assert variance[count] < 1e-6 * variance[0]
    set_components(tokenizer, mean, basis, variance)
    with torch.no_grad():
        latents = tokenizer.encode(clips[0])
        assert latents.abs().max() < 1.59  # within the range where tanh is undone
        recon = tokenizer.decode(latents)
    torch.testing.assert_close(recon[:, :, 1:], clips[0][:, :, 1:], rtol=0, atol=2e-3)
    spread = torch.atanh(latents[:, :, 1:] / 1.6).std(dim=(0, 2, 3, 4))
    torch.testing.assert_close(spread, torch.full_like(spread, 0.6), rtol=0.5, atol=0)
