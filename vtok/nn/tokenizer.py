"""VideoTokenizer: clip -> latents -> codes, and back."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.errors import ShapeError, UsageError
from vtok.nn.build import build_decoder, build_encoder, compression, resolve
from vtok.nn.config import PRESETS, LayerSpec, TokenizerConfig
from vtok.nn.layers import channels_first, crop
from vtok.nn.losses import LossBreakdown, reconstruction_loss
from vtok.nn.quantize import LFQ
from vtok.nn.streaming import Context, StreamState


class VideoTokenizer(nn.Module):
    """A causal convolutional video tokenizer with lookup-free quantization (arXiv 2310.05737).

    A clip of T = 1 + n * temporal_compression frames gives t = 1 + n latent steps, the first of
    them for the first frame alone, so an image is a clip of one frame. Other lengths are padded by
    repeating the last frame, other sizes by repeating the edge.

    Args:
        layers: entries `kind` or `(kind, number)` from the pixel side; the decoder mirrors them.
            The number is the layer's width; for `compress_space`, `compress_time` and `fold` the
            width they lead to (twice the one before if left out); for `consecutive_residual` how
            many residual units. Kinds: see `vtok.config.LAYER_KINDS`.
        residual_conv_kernel_size: odd, over time, height and width.
        num_codebooks: parallel codebooks, each on latent dimensions of its own.
        codebook_size: entries of a codebook, a power of two.
        channels: of the clip.
        init_dim: width of the first layer.
        dim_cond: width of the condition vectors that the `cond_` layers take.
        input_conv_kernel_size: of the first convolution, over time, height and width.
        output_conv_kernel_size: of the last.
        pad_mode: of the first, last and residual convolutions, in space: constant, reflect or
            replicate. In time `constant` pads zeros before the first frame, the others repeat it.
        lfq_entropy_loss_weight: of the quantizer's entropy loss.
        lfq_commitment_loss_weight: of its commitment loss.
        lfq_diversity_gamma: weight of the batch entropy within the entropy loss.
        num_stages: residual stages of the quantizer, the rate knob.
        stage_plan: for each stage the group of dimensions it refines, as (0, 0, 1); one by default.
        patch_size: pixels of a square folded into channels before the first convolution.
        decoder_layers: the decoder's own `layers` (listed from the pixel side too) in place of
            the mirror; of the same compression.
        decoder_init_dim: width of the decoder's last layer, with `decoder_layers`.

    Attributes:
        temporal_compression, spatial_compression: frames and pixels per latent step.

    Raises:
        UsageError: for arguments that do not fit.
    """

    def __init__(
        self,
        *,
        layers: tuple[LayerSpec, ...] = (("residual", 64),) * 3,
        residual_conv_kernel_size: int = 3,
        num_codebooks: int = 1,
        codebook_size: int = 8192,
        channels: int = 3,
        init_dim: int = 64,
        dim_cond: int | None = None,
        input_conv_kernel_size: tuple[int, int, int] = (7, 7, 7),
        output_conv_kernel_size: tuple[int, int, int] = (3, 3, 3),
        pad_mode: str = "reflect",
        lfq_entropy_loss_weight: float = 0.1,
        lfq_commitment_loss_weight: float = 0.25,
        lfq_diversity_gamma: float = 1.0,
        num_stages: int = 1,
        stage_plan: tuple[int, ...] | None = None,
        patch_size: int = 1,
        decoder_layers: tuple[LayerSpec, ...] | None = None,
        decoder_init_dim: int | None = None,
    ) -> None:
        super().__init__()
        given = dict(locals())
        fields = dataclasses.fields(TokenizerConfig)
        self.config = config = TokenizerConfig(**{f.name: given[f.name] for f in fields})
        rungs = resolve(config.layers, config.init_dim)
        mirror = rungs
        if config.decoder_layers is not None:
            mirror = resolve(config.decoder_layers, config.decoder_init_dim or config.init_dim)
        if compression(rungs) != compression(mirror):
            raise UsageError("layers and decoder_layers: expected the same compression")
        self.quantizer = LFQ(codebook_size, num_codebooks, num_stages, stage_plan)
        self.encoder = build_encoder(config, rungs, self.quantizer.dim)
        self.decoder = build_decoder(config, mirror, self.quantizer.dim)
        self.temporal_compression, space = compression(rungs)
        self.spatial_compression = space * config.patch_size

    @classmethod
    def from_config(cls, config: TokenizerConfig) -> VideoTokenizer:
        """A tokenizer with fresh weights."""
        return cls(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})

    @classmethod
    def from_pretrained(cls, name_or_path: str) -> VideoTokenizer:
        """A tokenizer with the weights of a shipped checkpoint by name, or of a file.

        Raises:
            InputError: if there is none.
            CheckpointError: if it is damaged.
        """
        # the one import that points up: this call is documented on the class, and the model
        # itself must not know of files
        from vtok.models.checkpoint import load_checkpoint

        return load_checkpoint(name_or_path)[0]

    @classmethod
    def from_preset(cls, name: str) -> VideoTokenizer:
        """The architecture of a preset by name, with fresh weights.

        Raises:
            UsageError: for an unknown name.
        """
        if name not in PRESETS:
            raise UsageError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
        return cls.from_config(PRESETS[name])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, in which clips are encoded and decoded."""
        return next(self.parameters()).dtype

    @property
    def decoder_lookback(self) -> int | None:
        """How many latent steps before a frame its pixels depend on; None where all of them."""
        return self.decoder.lookback

    def encode(
        self,
        video: Tensor,
        quantize: bool = False,
        cond: Tensor | None = None,
        *,
        num_stages: int | None = None,
        state: StreamState | None = None,
    ) -> Tensor:
        """Clip to latents, or with `quantize` to codes.

        Args:
            video: [B, C, T, H, W] in -1..1, or images [B, C, H, W].
            quantize: whether to return codes.
            cond: condition vectors [B, dim_cond], for conditioned layers.
            num_stages: how many stages of codes to return; all by default.
            state: memory of a stream, where `video` is its next chunk: the first chunk has
                1 + n * temporal_compression frames, later ones n * temporal_compression; only
                the last one may have any other length.

        Returns:
            latents [B, D, t, h, w]; or codes int64 [B, t, h, w], [B, K, t, h, w] where there are
            K > 1 stages times codebooks.

        Raises:
            ShapeError: for a wrong shape, type or number of stages.
        """
        latents = self.encode_latents(video, cond, state)
        return self.quantizer.latents_to_codes(latents, num_stages) if quantize else latents

    def encode_latents(
        self, video: Tensor, cond: Tensor | None = None, state: StreamState | None = None
    ) -> Tensor:
        """Clip [B, C, T, H, W] to latents [B, D, t, h, w]; see `encode`."""
        clip = self._pad(self._as_clip(video), first=state is None or not state.started)
        p = self.config.patch_size
        patches = rearrange(clip.to(self.dtype), "b c t (h p) (w q) -> b t h w (p q c)", p=p, q=p)
        return self.quantizer.normalize(self.encoder(channels_first(patches), Context(state, cond)))

    def decode(
        self,
        codes_or_latents: Tensor,
        cond: Tensor | None = None,
        *,
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
        state: StreamState | None = None,
    ) -> Tensor:
        """Codes, or float latents, to a clip.

        Args:
            codes_or_latents: integers as `encode` gives them, of all stages or the first few; or
                floats [B, D, t, h, w].
            cond: condition vectors [B, dim_cond], for conditioned layers.
            num_frames: frames to keep at most; all by default.
            size: (height, width) to keep, no larger than there is; all by default.
            state: memory of a stream, where this is its next chunk.

        Returns:
            The clip [B, C, T, H, W], about -1..1, not clamped.

        Raises:
            ShapeError: for a wrong shape or size, or codes out of range.
        """
        floating = codes_or_latents.is_floating_point()
        quantized = codes_or_latents if floating else self.dequantize(codes_or_latents)
        self._check_latents(quantized)
        first = state is None or not state.started
        patches = quantized.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
        patches = self.decoder(patches, Context(state, cond))
        skip = self.temporal_compression - 1 if first else 0  # what stands before the first frame
        p = self.config.patch_size
        clip = rearrange(patches[:, :, skip:], "b (p q c) t h w -> b c t (h p) (w q)", p=p, q=p)
        return crop(clip, num_frames, size)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Codes to quantized [B, D, t, h, w] in the weights' type.

        Raises:
            ShapeError: for a wrong shape or codes out of range.
        """
        return self.quantizer.codes_to_quantized(codes).to(self.dtype)

    def reconstruct(
        self, video: Tensor, cond: Tensor | None = None, num_stages: int | None = None
    ) -> Tensor:
        """Encode and decode: [B, C, T, H, W] (or images [B, C, H, W]) to the same shape."""
        codes = self.encode(video, quantize=True, cond=cond, num_stages=num_stages)
        clip = self._as_clip(video)
        _, _, frames, height, width = clip.shape
        recon = self.decode(codes, cond, num_frames=frames, size=(height, width))
        return recon.squeeze(2) if video.ndim == 4 else recon

    def loss(
        self, video: Tensor, cond: Tensor | None = None, num_stages: Tensor | None = None
    ) -> tuple[Tensor, LossBreakdown]:
        """Training loss of a batch.

        Args:
            video: [B, C, T, H, W] in -1..1, or images [B, C, H, W].
            cond: condition vectors [B, dim_cond], for conditioned layers.
            num_stages: how many stages each sample uses, int64 [B]; all by default.

        Returns:
            The scalar loss and its parts.
        """
        clip = self._as_clip(video)
        latents = self.encode_latents(clip, cond)
        quantized = self.quantizer(latents, num_stages)
        _, _, frames, height, width = clip.shape
        recon = self.decode(quantized, cond, num_frames=frames, size=(height, width))
        parts = self.quantizer.losses(latents)
        config = self.config
        entropy = parts.per_sample_entropy - config.lfq_diversity_gamma * parts.batch_entropy
        aux = config.lfq_entropy_loss_weight * entropy
        aux = aux + config.lfq_commitment_loss_weight * parts.commitment
        recon_loss = reconstruction_loss(recon, clip)
        return recon_loss + aux, LossBreakdown(recon_loss, aux, parts)

    def forward(
        self,
        video: Tensor,
        video_or_images: Tensor | None = None,
        cond: Tensor | None = None,
        *,
        return_loss: bool = False,
        return_codes: bool = False,
    ) -> Tensor | tuple[Tensor, LossBreakdown]:
        """The documented calls: reconstruction, loss or codes. See `reconstruct`, `loss`, `encode`.

        `video_or_images`, where given, is the input; 4-D means images, each a clip of one frame.
        """
        given = video if video_or_images is None else video_or_images
        if return_loss:
            return self.loss(given, cond)
        if return_codes:
            return self.encode(given, quantize=True, cond=cond)
        return self.reconstruct(given, cond)

    def _as_clip(self, video: Tensor) -> Tensor:
        clip = video.unsqueeze(2) if video.ndim == 4 else video
        if clip.ndim != 5 or clip.shape[1] != self.config.channels or 0 in clip.shape:
            raise ShapeError(
                f"video of shape {list(video.shape)}: expected [B, {self.config.channels}, "
                f"T, H, W], or images [B, {self.config.channels}, H, W]"
            )
        if not clip.is_floating_point():
            raise ShapeError(f"video of type {clip.dtype}: expected floats in -1..1")
        return clip

    def _check_latents(self, quantized: Tensor) -> None:
        if quantized.ndim != 5 or quantized.shape[1] != self.quantizer.dim or 0 in quantized.shape:
            expected = f"[B, {self.quantizer.dim}, t, h, w]"
            raise ShapeError(f"latents of shape {list(quantized.shape)}: expected {expected}")

    def _pad(self, clip: Tensor, *, first: bool) -> Tensor:
        """Repeat the last frame and the edges up to whole latent steps."""
        frames = -(clip.shape[2] - first) % self.temporal_compression
        rows, columns = (-n % self.spatial_compression for n in clip.shape[-2:])
        if not (frames or rows or columns):
            return clip
        return F.pad(clip, (0, columns, 0, rows, 0, frames), mode="replicate")
