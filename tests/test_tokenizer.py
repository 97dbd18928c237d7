"""VideoTokenizer: documented calls, shapes, causality, streaming, invalid arguments."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ARCHITECTURES, make_clip, make_condition, make_tokenizer

from vtok import StreamState, VideoTokenizer
from vtok.errors import ShapeError, UsageError
from vtok.models.checkpoint import config_digest, read_info
from vtok.nn.config import LAYER_KINDS, PRESETS, TokenizerConfig
from vtok.nn.layers import Context

KINDS = sorted(ARCHITECTURES)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}  # float32; convolutions may sum in another order


def test_documented_calls() -> None:
    tokenizer = VideoTokenizer()
    video = torch.randn(1, 3, 32, 32, 32)
    with torch.no_grad():
        tokens = tokenizer.encode(video, quantize=True)
        assert tokens.dtype == torch.int64
        assert tokens.shape == (1, 32, 32, 32)
        assert tokenizer.decode(tokens).shape == video.shape
        assert torch.equal(tokenizer(video, return_codes=True), tokens)
    video_or_images = torch.randn(2, 3, 8, 8)
    loss, breakdown = tokenizer(video, video_or_images, return_loss=True)
    loss.backward()
    assert loss.item() == pytest.approx(
        (breakdown.recon_loss + breakdown.lfq_aux_loss).item(), rel=1e-6
    )
    assert all(p.grad is not None for p in tokenizer.parameters())
    codes = tokenizer(video, video_or_images, return_codes=True)
    assert codes.shape == (2, 1, 8, 8)  # images are clips of one frame


def test_documented_defaults() -> None:
    config = VideoTokenizer().config
    assert config.layers == (("residual", 64),) * 3
    assert (config.num_codebooks, config.codebook_size, config.channels) == (1, 8192, 3)
    assert (config.init_dim, config.residual_conv_kernel_size) == (64, 3)
    assert (config.input_conv_kernel_size, config.output_conv_kernel_size) == ((7, 7, 7), (3, 3, 3))
    assert (config.pad_mode, config.lfq_entropy_loss_weight) == ("reflect", 0.1)
    assert config.lfq_diversity_gamma == 1.0


def test_architectures_cover_every_layer_kind() -> None:
    used = set()
    for arguments in ARCHITECTURES.values():
        for spec in (*arguments["layers"], *arguments.get("decoder_layers", ())):
            used.add(spec if isinstance(spec, str) else spec[0])
    assert used == set(LAYER_KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 16, 24), (7, 17, 31), (2, 1, 1)])
def test_any_size_and_length_is_reconstructed(kind: str, shape: tuple[int, int, int]) -> None:
    tokenizer, cond = make_tokenizer(kind), make_condition(kind, 2)
    clip = make_clip(*shape, batch=2)
    with torch.no_grad():
        codes = tokenizer.encode(clip, quantize=True, cond=cond)
        recon = tokenizer(clip, cond=cond)
        latents = tokenizer.encode(clip, cond=cond)
    t, space = tokenizer.temporal_compression, tokenizer.spatial_compression
    grid = (1 + -(-(shape[0] - 1) // t), -(-shape[1] // space), -(-shape[2] // space))
    assert codes.shape[-3:] == grid
    assert latents.shape == (2, tokenizer.quantizer.dim, *grid)
    assert recon.shape == clip.shape
    assert torch.isfinite(recon).all()


@pytest.mark.parametrize("kind", KINDS)
def test_image_is_a_clip_of_one_frame(kind: str) -> None:
    tokenizer, cond = make_tokenizer(kind), make_condition(kind)
    image = make_clip(1)
    with torch.no_grad():
        torch.testing.assert_close(
            tokenizer(image[:, :, 0], cond=cond), tokenizer(image, cond=cond)[:, :, 0]
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", [1, 4, 5, 8])
def test_causality(kind: str, changed: int) -> None:
    tokenizer, cond = make_tokenizer(kind), make_condition(kind)
    clip = make_clip(9)
    other = clip.clone()
    other[:, :, changed:] = -other[:, :, changed:]
    step = 1 + (changed - 1) // tokenizer.temporal_compression  # the first one that may change
    with torch.no_grad():
        before, after = (tokenizer.encode(x, cond=cond) for x in (clip, other))
        assert torch.equal(before[:, :, :step], after[:, :, :step])
        assert not torch.equal(before[:, :, step], after[:, :, step])
        later = before.clone()
        later[:, :, step:] = -later[:, :, step:]
        frames = 1 + (step - 1) * tokenizer.temporal_compression if step else 0
        one, two = (tokenizer.decode(x, cond) for x in (before, later))
        assert torch.equal(one[:, :, :frames], two[:, :, :frames])
        assert not torch.equal(one[:, :, frames], two[:, :, frames])


@settings(max_examples=12, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_streaming_equals_one_call(data: st.DataObject, kind: str) -> None:
    tokenizer, cond = make_tokenizer(kind), make_condition(kind)
    temporal = tokenizer.temporal_compression
    steps = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    tail = data.draw(st.integers(0, temporal - 1))  # the last chunk may have any length
    lengths = [n * temporal for n in steps]
    lengths[0] -= temporal - 1
    if tail:
        lengths.append(tail)
    clip = make_clip(sum(lengths), 16, 16)
    with torch.no_grad():
        whole = tokenizer.encode(clip, cond=cond)
        state = StreamState()
        parts = [tokenizer.encode(x, cond=cond, state=state) for x in clip.split(lengths, dim=2)]
        torch.testing.assert_close(torch.cat(parts, dim=2), whole, **TOLERANCE)
        recon = tokenizer.decode(whole, cond, num_frames=clip.shape[2])
        state, left, frames = StreamState(), clip.shape[2], []
        for part in whole.split([x.shape[2] for x in parts], dim=2):
            frames.append(tokenizer.decode(part, cond, state=state, num_frames=left))
            left -= frames[-1].shape[2]
        torch.testing.assert_close(torch.cat(frames, dim=2), recon, **TOLERANCE)


@pytest.mark.parametrize("layer", ["compress_time", "space_time_patch"])
def test_stateless_decoder_streams(layer: str) -> None:
    tokenizer = VideoTokenizer(layers=(layer,), init_dim=4, output_conv_kernel_size=(1, 3, 3))
    assert tokenizer.decoder_lookback == 0
    latents = torch.randn(1, tokenizer.quantizer.dim, 4, 4, 4)
    state = StreamState()
    with torch.no_grad():
        parts = [tokenizer.decode(part, state=state) for part in latents.split([1, 2, 1], dim=2)]
        torch.testing.assert_close(torch.cat(parts, dim=2), tokenizer.decode(latents), **TOLERANCE)


@pytest.mark.parametrize("kernel", [5, 7])
def test_streaming_with_chunks_shorter_than_the_kernel(kernel: int) -> None:
    tokenizer = VideoTokenizer(
        layers=("residual",),
        init_dim=4,
        input_conv_kernel_size=(kernel, 3, 3),
        output_conv_kernel_size=(kernel, 3, 3),
        residual_conv_kernel_size=5,
    )
    clip, state, back = make_clip(6, 8, 8), StreamState(), StreamState()
    with torch.no_grad():
        parts = [tokenizer.encode(frame, state=state) for frame in clip.split(1, dim=2)]
        latents = tokenizer.encode(clip)
        torch.testing.assert_close(torch.cat(parts, dim=2), latents, **TOLERANCE)
        parts = [tokenizer.decode(step, state=back) for step in latents.split(1, dim=2)]
        torch.testing.assert_close(torch.cat(parts, dim=2), tokenizer.decode(latents), **TOLERANCE)


def test_cloned_state_is_independent() -> None:
    tokenizer = make_tokenizer()
    clip = make_clip(9)
    state = StreamState()
    with torch.no_grad():
        tokenizer.encode(clip[:, :, :5], state=state)
        kept = state.clone()
        first = tokenizer.encode(clip[:, :, 5:], state=state)
        tokenizer.encode(-clip[:, :, 5:], state=state)
        assert torch.equal(tokenizer.encode(clip[:, :, 5:], state=kept), first)


def test_decoder_lookback() -> None:
    tokenizer = make_tokenizer()
    back = tokenizer.decoder_lookback
    assert back == 1
    latents = torch.randn(1, tokenizer.quantizer.dim, 6, 4, 4)
    other = latents.clone()
    other[:, :, : 5 - back] = 0
    with torch.no_grad():
        one, two = tokenizer.decode(latents), tokenizer.decode(other)
        temporal = tokenizer.temporal_compression
        torch.testing.assert_close(one[:, :, -temporal:], two[:, :, -temporal:])
        assert not torch.allclose(one[:, :, -2 * temporal], two[:, :, -2 * temporal])
    assert make_tokenizer("classic").decoder_lookback is None


@pytest.mark.parametrize(
    ("layers", "kernel", "back"),
    [
        (("residual", "compress_time", "causal_depthwise", "space_time_patch"), 3, 1),  # 4/8 + 1/4
        (
            ("space_time_patch", "residual", "compress_time", "causal_depthwise"),
            5,
            3,
        ),  # 4/8 + 2/2 + 1
        (("space_time_patch", "compress_space"), 7, 2),  # 6/4
        (("residual",), 1, 2),
    ],
)
def test_decoding_from_lookback_steps_earlier_is_exact(
    layers: tuple[str, ...], kernel: int, back: int
) -> None:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(
        layers=layers, init_dim=4, codebook_size=16, output_conv_kernel_size=(kernel, 3, 3)
    )
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        latents = torch.randn(1, 4, back + 4, 2, 2)
        whole = tokenizer.decode(latents)
        for step in range(back, back + 4):
            late = tokenizer.decode(latents[:, :, step - back :])
            frames = (back + 4 - step) * tokenizer.temporal_compression
            torch.testing.assert_close(late[:, :, -frames:], whole[:, :, -frames:], **TOLERANCE)
    assert tokenizer.decoder_lookback == back


def test_fewer_stages_decode() -> None:
    tokenizer = make_tokenizer()
    clip = make_clip(5)
    with torch.no_grad():
        codes = tokenizer.encode(clip, quantize=True)
        assert codes.shape[1] == 3
        for stages in (1, 2, 3):
            fewer = tokenizer.encode(clip, quantize=True, num_stages=stages)
            assert torch.equal(fewer, codes[:, :stages])
            assert tokenizer.decode(fewer).shape == clip.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_converted_to_the_type_of_the_weights(kind: str, dtype: torch.dtype) -> None:
    tokenizer, cond = make_tokenizer(kind).to(dtype), make_condition(kind)
    clip = make_clip(5, 16, 16)
    with torch.no_grad():
        latents = tokenizer.encode(clip, cond=cond)
        recon = tokenizer.decode(latents.float(), cond)
    assert (latents.dtype, recon.dtype) == (dtype, dtype)
    assert torch.isfinite(recon).all()


def test_decode_crops() -> None:
    tokenizer = make_tokenizer()
    latents = torch.randn(1, 6, 2, 2, 2)
    with torch.no_grad():
        assert tokenizer.decode(latents, num_frames=3, size=(7, 5)).shape == (1, 3, 3, 7, 5)
        assert tokenizer.decode(latents, num_frames=9).shape[2] == 5
        for size in ((9, 8), (8, 0), (-1, 8)):
            with pytest.raises(ShapeError, match="expected 1 x 1 to 8 x 8"):
                tokenizer.decode(latents, size=size)
        with pytest.raises(ShapeError, match="-1 frames: expected 0 or more"):
            tokenizer.decode(latents, num_frames=-1)


def test_attention_over_time_with_one_channel() -> None:
    tokenizer = VideoTokenizer(layers=("attend_time",), init_dim=1)
    clip = make_clip(3, 4, 4)
    assert tokenizer(clip).shape == clip.shape


def test_condition_changes_the_result_and_is_required() -> None:
    tokenizer = make_tokenizer("conditioned")
    clip, cond = make_clip(3), make_condition("conditioned")
    with torch.no_grad():
        assert not torch.allclose(
            tokenizer.encode(clip, cond=cond), tokenizer.encode(clip, cond=-cond)
        )
    with pytest.raises(ShapeError, match="pass cond="):
        tokenizer.encode(clip)
    for wrong in (torch.zeros(1, 5), torch.zeros(4)):
        with pytest.raises(ShapeError, match=r"cond of shape .*expected a tensor \[B, 4\]"):
            tokenizer.encode(clip, cond=wrong)


def test_modulated_convolution_equals_modulated_weights() -> None:
    unit = make_tokenizer("conditioned").encoder.layers[1]
    x, cond = torch.randn(1, 8, 3, 5, 5), torch.randn(1, 4)
    weight = unit.conv.conv.weight * (unit.to_scale(cond) + 1).view(1, 8, 1, 1, 1)
    weight = weight / weight.square().sum((1, 2, 3, 4), keepdim=True).sqrt()
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1, 0, 0), mode="reflect")
    padded = torch.nn.functional.pad(padded, (0, 0, 0, 0, 2, 0), mode="replicate")
    hidden = torch.nn.functional.elu(
        torch.nn.functional.conv3d(padded, weight, unit.conv.conv.bias)
    )
    expected = x + torch.nn.functional.elu(unit.pointwise(hidden, Context()))
    torch.testing.assert_close(unit(x, Context(cond=cond)), expected)


def test_new_linear_path_is_the_linear_maps_alone() -> None:
    torch.manual_seed(0)
    tokenizer, clip = VideoTokenizer(**ARCHITECTURES["linear"]), make_clip(9)
    with torch.no_grad():
        latents, recon = tokenizer.encode(clip), tokenizer(clip)
        for layer in (tokenizer.encoder.layers[1], tokenizer.decoder.layers[1]):
            for parameter in layer.parameters():
                parameter.normal_()
        assert torch.equal(tokenizer.encode(clip), latents)
        assert torch.equal(tokenizer(clip), recon)


def test_linear_path_of_a_mirrored_architecture() -> None:
    tokenizer = VideoTokenizer(**ARCHITECTURES["classic"], linear_path=True)
    clip = make_clip(6, 18, 21)
    assert tokenizer.encoder.linear.project.in_channels == 3 * 4 * 2 * 2
    assert tokenizer(clip).shape == clip.shape


def test_new_second_pass_changes_nothing() -> None:
    torch.manual_seed(0)
    tokenizer, clip = VideoTokenizer(**ARCHITECTURES["second_pass"]), make_clip(9)
    with torch.no_grad():
        for parameter in tokenizer.encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        first = tokenizer.encode_latents(clip, num_stages=1)
        assert torch.equal(tokenizer.encode_latents(clip), first)


def test_second_pass_runs_from_its_number_of_stages_on() -> None:
    tokenizer, clip = make_tokenizer("second_pass"), make_clip(9)
    plain = VideoTokenizer(**ARCHITECTURES["linear"])
    weights = tokenizer.state_dict().items()
    plain.load_state_dict({k: v for k, v in weights if not k.startswith("second_pass.")})
    with torch.no_grad():
        assert torch.equal(tokenizer.encode(clip, num_stages=1), plain.encode(clip))
        both = tokenizer.encode(clip)
        assert torch.equal(tokenizer.encode(clip, num_stages=2), both)
        assert not torch.allclose(both, plain.encode(clip), atol=0.05)
        codes = tokenizer.encode(clip, quantize=True, num_stages=1)
        assert torch.equal(codes, plain.encode(clip, quantize=True, num_stages=1))


def test_second_pass_reads_the_reconstruction_error() -> None:
    """The correction depends on the decoder, but its gradient does not."""
    tokenizer, clip = make_tokenizer("second_pass"), make_clip(9)
    latents = tokenizer.encode_latents(clip)
    latents.square().sum().backward()
    assert all(parameter.grad is None for parameter in tokenizer.decoder.parameters())
    assert all(parameter.grad is not None for parameter in tokenizer.second_pass.parameters())
    with torch.no_grad():
        tokenizer.decoder.linear.project.bias += 0.5
        assert not torch.allclose(tokenizer.encode_latents(clip), latents, atol=0.01)


def test_preset() -> None:
    tokenizer = VideoTokenizer.from_preset("vtok-base")
    assert (tokenizer.temporal_compression, tokenizer.spatial_compression) == (4, 8)
    assert tokenizer.quantizer.bits_per_stage * tokenizer.config.num_stages == 72
    assert VideoTokenizer.from_config(PRESETS["vtok-base"]).config == tokenizer.config
    shipped = replace(tokenizer.config, second_pass=(2, 3))
    assert read_info("vtok-base").config == shipped


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 4, 2, 8, 8), r"expected \[B, 3, T, H, W\]"),
        (torch.zeros(3, 2, 8), "or images"),
        (torch.zeros(1, 3, 0, 8, 8), r"\[1, 3, 0, 8, 8\]"),
        (torch.zeros(1, 3, 2, 8, 8, dtype=torch.uint8), "expected floats"),
    ],
)
def test_wrong_videos_are_refused(video: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make_tokenizer().encode(video)


def test_wrong_latents_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected \[B, 6, t, h, w\]"):
        make_tokenizer().decode(torch.zeros(1, 5, 1, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codebook_size": 1000}, "codebook_size=1000: expected a power of two"),
        ({"layers": ("residul",)}, "'residul': expected one of residual"),
        ({"layers": ("cond_residual",)}, "dim_cond=None"),
        ({"pad_mode": "mirror"}, "pad_mode='mirror'"),
        ({"num_stages": 0}, "num_stages=0: expected a whole number from 1 to 16"),
        ({"num_codebooks": True}, "num_codebooks=True: expected a whole number"),
        ({"init_dim": 8.0}, "init_dim=8.0: expected a whole number"),
        ({"channels": "3"}, "channels='3': expected a whole number"),
        ({"init_dim": 10**9}, "from 1 to 65536"),
        ({"codebook_size": 512.0}, "codebook_size=512.0: expected a power of two"),
        ({"lfq_entropy_loss_weight": float("nan")}, "lfq_entropy_loss_weight=nan"),
        ({"lfq_diversity_gamma": "1"}, "lfq_diversity_gamma='1'"),
        ({"residual_conv_kernel_size": -1}, "residual_conv_kernel_size=-1: expected an odd"),
        ({"input_conv_kernel_size": (-1, 3, 3)}, "three odd numbers from 1"),
        ({"output_conv_kernel_size": 3}, "output_conv_kernel_size=3: expected three odd"),
        ({"layers": None}, "layers=None: expected a tuple"),
        ({"layers": ("residual", 64)}, r"layers=64: expected entries kind or \(kind, number\)"),
        ({"layers": (("residual", 0),)}, r"\(kind, a whole number from 1 to 65536\)"),
        ({"layers": (("consecutive_residual", -1),)}, "a whole number from 1 to 65536"),
        ({"layers": (("consecutive_residual", 5000),)}, "5000: expected at most 1000 layers"),
        ({"layers": ("compress_space",) * 20}, "compress_space leads to 131072 channels"),
        ({"layers": ("cond_residual",), "dim_cond": 0}, "dim_cond=0: expected a whole number"),
        ({"decoder_init_dim": 8}, "decoder_init_dim=8: expected decoder_layers with it"),
        ({"input_conv_kernel_size": (2, 3, 3)}, "three odd numbers"),
        ({"linear_path": 1}, "linear_path=1: expected true or false"),
        ({"second_pass": 2}, "second_pass=2: expected blocks, 1 to 1000, and stages, 1 to 1"),
        ({"second_pass": (0, 1)}, "second_pass=.*: expected blocks"),
        ({"second_pass": (1, 2)}, "second_pass=.*: expected blocks, 1 to 1000, and stages, 1 to 1"),
        ({"codebook_size": 4, "bit_plan": (0,)}, "expected the dimension of each of 2 bits"),
        ({"codebook_size": 4, "bit_plan": (0, 2)}, r"bit_plan=\(0, 2\): expected the dimension"),
        ({"codebook_size": 4, "bit_plan": (0, 1.0)}, "bit_plan="),
        ({"codebook_size": 2**17, "bit_plan": (0,) * 17}, "16 each at most"),
        (
            {"codebook_size": 4, "bit_plan": (0, 0), "stage_plan": (0,)},
            r"stage_plan=\(0,\): expected none with bit_plan",
        ),
        (
            {"layers": ("space_time_patch",), "decoder_layers": ("residual",)},
            "the same compression",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VideoTokenizer(**arguments)


def test_lists_are_converted_to_tuples() -> None:
    given = TokenizerConfig(layers=[["residual", 8]], input_conv_kernel_size=[3, 3, 3])
    assert given == TokenizerConfig(layers=(("residual", 8),), input_conv_kernel_size=(3, 3, 3))
    hash(given)


def test_config_round_trip_through_json() -> None:
    for config in (*PRESETS.values(), VideoTokenizer(**ARCHITECTURES["classic"]).config):
        assert TokenizerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(UsageError, match="unknown config keys: spam"):
        TokenizerConfig.from_dict({**PRESETS["vtok-base"].to_dict(), "spam": 1})
    data = PRESETS["vtok-base"].to_dict()
    del data["layers"]
    with pytest.raises(UsageError, match="missing config keys: layers"):
        TokenizerConfig.from_dict(data)


def test_layer_kinds_in_the_spelling_of_checkpoints() -> None:
    stored = TokenizerConfig(layers=("fold", ("separable", 8), ("separable_memory", 8)))
    named = ("space_time_patch", ("depthwise", 8), ("causal_depthwise", 8))
    assert stored == TokenizerConfig(layers=named)
    assert stored.to_dict()["layers"] == ("fold", ("separable", 8), ("separable_memory", 8))
    digest = config_digest("vtok", stored.to_dict())  # code files hold it
    assert digest.startswith("1b70c0163f5a")
