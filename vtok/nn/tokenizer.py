"""The video tokenizer: clip to latents to codes, and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from vtok.errors import OptionError, ShapeError, UsageError
from vtok.nn.build import build_decoder, build_encoder, build_second_pass
from vtok.nn.config import PRESETS, LayerSpec, TokenizerConfig
from vtok.nn.interface import StreamState, Tokenizer, crop, mark
from vtok.nn.layers import Context, channels_first
from vtok.nn.quantize import LATENT_BOUND, LFQ, QuantizerLosses
from vtok.nn.shapes import geometry_of, resolve_stacks


@dataclass(frozen=True)
class LossBreakdown:
    """Parts of the training loss, each a scalar.

    Attributes:
        recon_loss: Mean absolute plus mean squared error of pixels in -1..1.
        lfq_aux_loss: Weighted sum of the quantizer's losses.
        quantizer: The quantizer's losses, unweighted.
    """

    recon_loss: Tensor
    lfq_aux_loss: Tensor
    quantizer: QuantizerLosses


class VideoTokenizer(Tokenizer):
    """Causal convolutional video tokenizer with lookup-free quantization (arXiv 2310.05737).

    A clip of T = 1 + n * temporal_compression frames gives t = 1 + n latent steps. The first step
    holds the first frame alone, so an image is a clip of one frame. Other lengths are padded by
    repeating the last frame, other sizes by repeating the edge.

    Args:
        layers: Entries `kind` or `(kind, number)` from the pixel side; the decoder mirrors them.
            The number is the layer's width; for `compress_space`, `compress_time` and
            `space_time_patch` the width after it (default: twice the width before it); for
            `consecutive_residual` the number of residual units. `vtok.nn.config.LAYER_KINDS`
            lists the kinds.
        residual_conv_kernel_size: Odd size over time, height and width.
        num_codebooks: Parallel codebooks, each on separate latent dimensions.
        codebook_size: Entries of a codebook, a power of two.
        channels: Channels of the clip.
        init_dim: Width of the first layer.
        dim_cond: Width of the condition vectors of the `cond_` layers.
        input_conv_kernel_size: Size of the first convolution over time, height and width.
        output_conv_kernel_size: Size of the last convolution.
        pad_mode: Spatial padding of the first, last and residual convolutions: constant, reflect
            or replicate. In time, `constant` pads zeros before the first frame and the others
            repeat it.
        lfq_entropy_loss_weight: Weight of the quantizer's entropy loss.
        lfq_commitment_loss_weight: Weight of its commitment loss.
        lfq_diversity_gamma: Weight of the batch entropy within the entropy loss.
        num_stages: Residual stages of the quantizer, the rate knob.
        stage_plan: Group of dimensions that each stage refines, such as (0, 0, 1); default: one
            group.
        patch_size: Side of the square of pixels merged into channels before the first convolution.
        decoder_layers: Separate `layers` of the decoder, also listed from the pixel side and of
            the same compression; default: the mirror of `layers`.
        decoder_init_dim: Width of the decoder's last layer, with `decoder_layers`.
        bit_plan: In place of `stage_plan`, the dimension that each bit refines, stage by stage,
            such as (0, 0, 1, 1, 0, 2) for two stages of a codebook of 8 entries.
        linear_path: Add a linear map of each block of pixels to the raw latents, and a linear map
            of the expanded latents to the frames. The networks then start as zero;
            scripts/fit_components.py sets the maps to principal components.
        second_pass: Number of residual blocks of a second pass of the encoder, which corrects the
            latents from the error of their reconstruction, and the least number of stages that it
            runs for; default: no second pass.

    Attributes:
        temporal_compression, spatial_compression: Frames and pixels per latent step.
        geometry: These and the other shapes, for code that works with any tokenizer.

    Raises:
        OptionError: An argument is invalid.
        UsageError: Encoder and decoder have different compression.
    """

    arch = "vtok"
    latent_bound = LATENT_BOUND
    config: TokenizerConfig

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
        bit_plan: tuple[int, ...] | None = None,
        linear_path: bool = False,
        second_pass: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        given = dict(locals())
        fields = dataclasses.fields(TokenizerConfig)
        self.config = config = TokenizerConfig(**{f.name: given[f.name] for f in fields})
        layers_down, layers_up = resolve_stacks(config)
        self.quantizer = LFQ(codebook_size, num_codebooks, num_stages, stage_plan, bit_plan)
        self.encoder = build_encoder(config, layers_down, self.quantizer.dim)
        self.decoder = build_decoder(config, layers_up, self.quantizer.dim)
        self.second_pass = build_second_pass(config, layers_down, self.quantizer.dim)
        self.geometry = geometry_of(config)
        self.temporal_compression = self.geometry.temporal_compression
        self.spatial_compression = self.geometry.spatial_compression

    @classmethod
    def from_config(cls, config: TokenizerConfig) -> VideoTokenizer:
        """Create a tokenizer with random weights."""
        return cls(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})

    @classmethod
    def from_pretrained(cls, name_or_path: str) -> VideoTokenizer:
        """Load a shipped checkpoint by name, or a checkpoint file.

        Raises:
            InputError: There is no such checkpoint.
            CheckpointError: The checkpoint is damaged.
            UsageError: It is of another architecture.
        """
        # the only import that points up, since users expect this call on the class
        from vtok.models.checkpoint import load_checkpoint

        found, info = load_checkpoint(name_or_path)
        if not isinstance(found, cls):
            raise UsageError(f"{name_or_path}: a {info.arch} tokenizer: load it with vtok.load")
        return found

    @classmethod
    def from_preset(cls, name: str) -> VideoTokenizer:
        """Create the architecture of a preset, with random weights.

        It has no second pass of the encoder, which is trained later; the weights of that name
        may have one.

        Raises:
            OptionError: The name is unknown.
        """
        if name not in PRESETS:
            raise OptionError("preset", name, f"one of {', '.join(PRESETS)}")
        return cls.from_config(PRESETS[name])

    @property
    def decoder_lookback(self) -> int | None:
        """Latent steps before a frame that its pixels depend on; None if unbounded."""
        return self.geometry.lookback

    def encode(
        self,
        video: Tensor,
        quantize: bool = False,
        cond: Tensor | None = None,
        *,
        num_stages: int | None = None,
        state: StreamState | None = None,
    ) -> Tensor:
        """Encode a clip to latents, or with `quantize` to codes.

        Args:
            video: [B, C, T, H, W] in -1..1, or images [B, C, H, W].
            quantize: Return codes instead of latents.
            cond: Condition vectors [B, dim_cond], for conditioned layers.
            num_stages: Stages of codes to return, and that the latents are made for; default: all.
            state: State of a stream whose next chunk is `video`. The first chunk has
                1 + n * temporal_compression frames, later ones n * temporal_compression; only
                the last one may have any other length.

        Returns:
            Latents [B, D, t, h, w]; or codes, int64 [B, t, h, w], or [B, K, t, h, w] with
            K = stages times codebooks above 1.

        Raises:
            ShapeError: The shape, type or number of stages is wrong.
        """
        latents = self.encode_latents(video, state, cond, num_stages=num_stages)
        return self.quantizer.latents_to_codes(latents, num_stages) if quantize else latents

    def encode_latents(
        self,
        video: Tensor,
        state: StreamState | None = None,
        cond: Tensor | None = None,
        *,
        num_stages: int | None = None,
    ) -> Tensor:
        """Encode a clip [B, C, T, H, W] to latents [B, D, t, h, w]; see `encode`."""
        clip = self.padded(self._as_clip(video), state)
        return mark(state, self.encode_clip(clip, state, cond, num_stages))

    def encode_clip(
        self,
        clip: Tensor,
        state: StreamState | None,
        cond: Tensor | None = None,
        num_stages: int | None = None,
    ) -> Tensor:
        """Encode a padded clip; see `Tokenizer` and `encode`."""
        context, patches = Context(state, cond), self._patches(clip)
        raw, features = self.encoder.with_features(patches, context)
        if self.second_pass is not None and self._needs_second_pass(num_stages):
            with torch.no_grad():  # the error counts as an input, not as a function of the weights
                latents = self.quantizer.normalize(raw.detach())
                error = patches - self._decode_patches(latents, state, cond)
            raw = raw + self.second_pass(features, error, context)
        return self.quantizer.normalize(raw)

    def _needs_second_pass(self, num_stages: int | None) -> bool:
        second = self.config.second_pass
        return second is not None and (num_stages is None or num_stages >= second[1])

    def _patches(self, clip: Tensor) -> Tensor:
        """Merge squares of pixels: [B, C, T, H, W] -> [B, p * p * C, T, H / p, W / p]."""
        p = self.config.patch_size
        return channels_first(rearrange(clip, "b c t (h p) (w q) -> b t h w (p q c)", p=p, q=p))

    def to_codes(self, latents: Tensor, num_stages: int | None = None) -> Tensor:
        """Quantize latents [B, D, t, h, w] to codes, int64 [B, K, t, h, w]; see `Tokenizer`."""
        codes = self.quantizer.latents_to_codes(latents, num_stages)
        return codes.unsqueeze(1) if codes.ndim == 4 else codes

    def from_codes(self, codes: Tensor) -> Tensor:
        """Convert codes to quantized latents, float32 [B, D, t, h, w]; see `Tokenizer`."""
        return self.quantizer.codes_to_quantized(codes)

    def quantize(self, latents: Tensor, num_stages: int | None = None) -> Tensor:
        """Quantize latents with a gradient to the dimensions in use; see `Tokenizer`."""
        used = None if num_stages is None else torch.tensor([num_stages], device=latents.device)
        return self.quantizer(latents, used)

    def decode(
        self,
        codes_or_latents: Tensor,
        cond: Tensor | None = None,
        *,
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
        state: StreamState | None = None,
        ahead: int = 0,
    ) -> Tensor:
        """Decode codes or float latents to a clip.

        Args:
            codes_or_latents: Codes as returned by `encode`, of all stages or the first few; or
                floats [B, D, t, h, w].
            cond: Condition vectors [B, dim_cond], for conditioned layers.
            num_frames: Largest number of frames to keep; default: all.
            size: (height, width) to keep, at most the decoded size; default: all.
            state: State of a stream whose next chunk this is.
            ahead: 0, since a frame depends on no later steps.

        Returns:
            The clip [B, C, T, H, W], about -1..1, not clamped.

        Raises:
            ShapeError: The shape or size is wrong, or a code is out of range.
        """
        latents = self.as_latents(codes_or_latents)
        clip = self.decode_latents(latents, state, ahead, cond)
        return crop(mark(state, clip), num_frames, size)

    def decode_latents(
        self, latents: Tensor, state: StreamState | None, ahead: int, cond: Tensor | None = None
    ) -> Tensor:
        """Decode latents [B, D, t, h, w] of any float type; see `Tokenizer`."""
        patches, p = self._decode_patches(latents, state, cond), self.config.patch_size
        return rearrange(patches, "b (p q c) t h w -> b c t (h p) (w q)", p=p, q=p)

    def _decode_patches(
        self, latents: Tensor, state: StreamState | None, cond: Tensor | None
    ) -> Tensor:
        """Decode latents [B, D, t, h, w] to frames as `_patches` returns them."""
        first = state is None or not state.started
        quantized = latents.contiguous(memory_format=torch.channels_last_3d)
        patches: Tensor = self.decoder(quantized, Context(state, cond))
        skip = self.temporal_compression - 1 if first else 0  # frames before the first one
        return patches[:, :, skip:]

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
        """Compute the training loss of a batch.

        Args:
            video: [B, C, T, H, W] in -1..1, or images [B, C, H, W].
            cond: Condition vectors [B, dim_cond], for conditioned layers.
            num_stages: Stages that each sample uses, int64 [B]; default: all.

        Returns:
            The scalar loss and its parts.
        """
        clip = self._as_clip(video)
        latents = self.encode_latents(clip, cond=cond)
        quantized = self.quantizer(latents, num_stages)
        _, _, frames, height, width = clip.shape
        recon = self.decode(quantized, cond, num_frames=frames, size=(height, width))
        parts = self.quantizer.losses(latents)
        config = self.config
        entropy = parts.per_sample_entropy - config.lfq_diversity_gamma * parts.batch_entropy
        aux = config.lfq_entropy_loss_weight * entropy
        aux = aux + config.lfq_commitment_loss_weight * parts.commitment
        difference = recon - clip
        recon_loss = difference.abs().mean() + difference.square().mean()
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
        """Call `reconstruct`, or `loss` or `encode` if the matching flag is set.

        Args:
            video: [B, C, T, H, W] in -1..1, or images [B, C, H, W].
            video_or_images: Input that replaces `video`; 4-D means images.
            cond: Condition vectors [B, dim_cond], for conditioned layers.
            return_loss: Return the loss and its parts.
            return_codes: Return codes.
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
