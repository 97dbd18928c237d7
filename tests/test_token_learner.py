"""TokenLearner, V1.0, V1.1 and TokenFuser: formulas, layouts, invalid inputs."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from vtok.errors import OptionError, ShapeError
from vtok.nn.token_learner import TokenFuser, TokenLearner, TokenLearnerV10, TokenLearnerV11

C, S = 6, 4
LAYOUTS = {"sequence": (2, 9, C), "image": (2, C, 3, 4), "video": (2, C, 3, 3, 4)}
PAPER: dict[str, Callable[[], TokenLearnerV10 | TokenLearnerV11]] = {
    "V10 sum": lambda: TokenLearnerV10(S, C),
    "V10 mean": lambda: TokenLearnerV10(S, C, reduction="mean"),
    "V11": lambda: TokenLearnerV11(S, C),
}
Params = dict[str, Tensor]
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_paper_learner = pytest.mark.parametrize("kind", PAPER)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def gelu_erf(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def gelu_tanh(x: Tensor) -> Tensor:
    return x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2


def norm_rows(rows: Tensor, p: Params, name: str) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    deviation = ((centred**2).mean(1, keepdim=True) + 1e-6).sqrt()
    return centred / deviation * p[f"{name}.weight"] + p[f"{name}.bias"]


def mlp_rows(rows: Tensor, p: Params) -> Tensor:
    hidden = gelu_tanh(rows @ p["mlp.0.weight"].T + p["mlp.0.bias"])
    return hidden @ p["mlp.2.weight"].T + p["mlp.2.bias"]


def rows_of(frame: Tensor) -> Tensor:
    return frame.flatten(1).T  # [C, H, W] -> [H * W, C]


def grid_of(rows: Tensor, height: int, width: int) -> Tensor:
    return rows.T.reshape(-1, height, width)  # [H * W, C] -> [C, H, W]


def conv3x3(frame: Tensor, weight: Tensor) -> Tensor:
    _, height, width = frame.shape
    padded = frame.new_zeros(frame.shape[0], height + 2, width + 2)
    padded[:, 1:-1, 1:-1] = frame
    taps = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return torch.einsum("ock,kchw->ohw", weight.flatten(2), torch.stack(taps))


def zeta_maps(frame: Tensor, p: Params, num_layers: int) -> Tensor:
    """[C, H, W] -> [S, H, W], by S copies of the input and S separate stacks."""
    stacks = [frame] * S
    for layer in range(num_layers):
        weights = p[f"net.{2 * layer}.weight"].chunk(S)
        biases = p[f"net.{2 * layer}.bias"].chunk(S)
        for s, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = gelu_erf(stacks[s]) if layer else stacks[s]
            stacks[s] = torch.einsum("oi,ihw->ohw", weight[:, :, 0, 0], x) + bias[:, None, None]
    return torch.cat(stacks)


def zeta_reference(x: Tensor, p: Params, num_layers: int) -> Tensor:
    if x.ndim > 3:
        return torch.stack([zeta_reference(part, p, num_layers) for part in x])
    maps = zeta_maps(x, p, num_layers)
    return torch.stack([(x * maps[s]).mean((1, 2)) for s in range(S)], 1)


def v10_maps(frame: Tensor, p: Params) -> Tensor:
    y = grid_of(norm_rows(rows_of(frame), p, "norm"), *frame.shape[1:])
    for layer in range(4):
        y = conv3x3(gelu_tanh(y) if layer else y, p[f"convs.{2 * layer}.weight"])
    return 1 / (1 + torch.exp(-y))


def v11_maps(frame: Tensor, p: Params) -> Tensor:
    powers = torch.exp(mlp_rows(norm_rows(rows_of(frame), p, "norm"), p))  # [P, S]
    return grid_of(powers / powers.sum(0), *frame.shape[1:])


def fuser_reference(frame: Tensor, p: Params, tokens: Tensor) -> Tensor:
    mixed = p["mix.weight"] @ norm_rows(tokens, p, "token_norm") + p["mix.bias"][:, None]
    mixed = norm_rows(mixed, p, "mixed_norm")
    gate = 1 / (1 + torch.exp(-mlp_rows(norm_rows(rows_of(frame), p, "norm"), p)))
    spread = torch.stack([sum(g[s] * mixed[s] for s in range(S)) for g in gate])
    return grid_of(spread, *frame.shape[1:])


def frames_of(x: Tensor) -> Tensor:
    """Convert any layout to [B, T, C, H, W], a sequence to a 3x3 grid."""
    if x.ndim == 3:
        return torch.stack([grid_of(rows, 3, 3) for rows in x])[:, None]
    return x[:, None] if x.ndim == 4 else x.transpose(1, 2)


def per_frame(x: Tensor, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """Apply a function to each frame, and to its tokens if given: [B, T, ...]."""
    frames = frames_of(x)
    inputs = [frames, *(arg if x.ndim == 5 else arg[:, None] for arg in args)]
    each = product(*map(range, frames.shape[:2]))
    outputs = [function(*(y[b, t] for y in inputs)) for b, t in each]
    return torch.stack(outputs).reshape(*frames.shape[:2], *outputs[0].shape)


def randomised(module: nn.Module) -> tuple[nn.Module, Params]:
    """Return the module in float64 with random parameters, and copies of the parameters."""
    module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.6)
    return module, {k: v.detach().clone().requires_grad_() for k, v in module.named_parameters()}


def assert_same_with_gradients(
    actual: Tensor, expected: Tensor, inputs: list[Tensor], module: nn.Module, params: Params
) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    probe = torch.randn_like(expected)
    grads = torch.autograd.grad((actual * probe).sum(), [*inputs, *module.parameters()])
    wanted = torch.autograd.grad((expected * probe).sum(), [*inputs, *params.values()])
    assert all(bool(g.abs().max() > 0) for g in wanted)
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_token_learner_formula(num_layers: int, lead: tuple[int, ...]) -> None:
    learner = TokenLearner(dim=C, ff_mult=3, num_output_tokens=S, num_layers=num_layers)
    module, params = randomised(learner)
    x = double(*lead, C, 3, 5)
    assert_same_with_gradients(
        module(x), zeta_reference(x, params, num_layers), [x], module, params
    )
    maps = torch.stack([zeta_maps(f, params, num_layers) for f in x.reshape(-1, C, 3, 5)])
    torch.testing.assert_close(learner.maps(x), maps.reshape(*lead, S, 3, 5))


@each_layout
@each_paper_learner
def test_paper_learner_formulas(kind: str, layout: str) -> None:
    learner = PAPER[kind]()
    module, params = randomised(learner)
    x = double(*LAYOUTS[layout])
    formula = v11_maps if kind == "V11" else v10_maps
    maps = per_frame(x, lambda frame: formula(frame, params))
    tokens = torch.einsum("btshw,btchw->btsc", maps, frames_of(x))
    if kind == "V10 mean":
        tokens = tokens / maps[0, 0, 0].numel()
    if layout != "video":
        maps, tokens = maps[:, 0], tokens[:, 0]
    assert_same_with_gradients(module(x), tokens, [x], module, params)
    torch.testing.assert_close(learner.maps(x), maps.flatten(2) if layout == "sequence" else maps)


@each_layout
def test_fuser_formula(layout: str) -> None:
    module, params = randomised(TokenFuser(S, C))
    x = double(*LAYOUTS[layout])
    tokens = double(2, 3, S, C) if layout == "video" else double(2, S, C)
    out = per_frame(x, lambda frame, t: fuser_reference(frame, params, t), tokens)
    expected = out.transpose(1, 2) if layout == "video" else out[:, 0]
    if layout == "sequence":
        expected = torch.stack([rows_of(frame) for frame in expected])
    assert_same_with_gradients(module(tokens, x), expected, [tokens, x], module, params)


def test_documented_calls() -> None:
    image = torch.randn(1, 64, 32, 32)
    assert TokenLearner(dim=64)(image).shape == (1, 64, 8)
    head = nn.Sequential(TokenLearner(dim=64), nn.Flatten(), nn.Linear(64 * 8, 10))
    assert head(image).shape == (1, 10)
    for shape in [(2, 49, 256), (2, 256, 7, 7)]:
        x = torch.randn(shape)
        assert TokenLearnerV11(8, 256)(x).shape == (2, 8, 256)
        tokens = TokenLearnerV10(8, 256)(x)
        assert tokens.shape == (2, 8, 256)
        assert TokenFuser(8, 256)(tokens, x).shape == shape


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_num_layers_counts_convolutions(num_layers: int) -> None:
    learner = TokenLearner(dim=C, num_output_tokens=S, num_layers=num_layers)
    convs = [m for m in learner.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == num_layers
    assert [conv.out_channels for conv in convs] == [C * 2 * S] * (num_layers - 1) + [S]
    assert [conv.weight.shape[1] for conv in convs] == [C] + [C * 2] * (num_layers - 1)


@each_paper_learner
def test_frames_are_independent(kind: str) -> None:
    module, fuser = PAPER[kind](), TokenFuser(S, C)
    nn.init.normal_(fuser.mix.weight)
    video = torch.randn(2, C, 3, 4, 5)
    tokens = module(video)
    fused = fuser(tokens, video)
    for t in range(3):
        frame = video[:, :, t]
        torch.testing.assert_close(tokens[:, t], module(frame))
        torch.testing.assert_close(fused[:, :, t], fuser(tokens[:, t], frame))


def test_only_v10_depends_on_the_order_of_positions() -> None:
    x = torch.randn(2, 25, C)
    order = torch.randperm(25)
    v11, v10 = TokenLearnerV11(S, C), TokenLearnerV10(S, C)
    torch.testing.assert_close(v11(x[:, order]), v11(x))
    torch.testing.assert_close(v11.maps(x[:, order]), v11.maps(x)[:, :, order])
    assert not torch.allclose(v10(x[:, order]), v10(x), atol=1e-3)


def test_v11_maps_sum_to_one() -> None:
    learner = TokenLearnerV11(S, C)
    maps = learner.maps(torch.randn(2, C, 3, 4, 5))
    torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(2, 3, S))
    pixel = torch.randn(2, C)
    flat = pixel[:, :, None, None].expand(2, C, 4, 5)
    torch.testing.assert_close(learner(flat), pixel[:, None].expand(2, S, C))


def test_new_fuser_returns_zeros_and_has_gradients() -> None:
    fuser = TokenFuser(S, C)
    tokens, x = torch.randn(2, S, C), torch.randn(2, C, 3, 4)
    out = fuser(tokens, x)
    assert torch.equal(out, torch.zeros_like(x))
    (out - x).square().mean().backward()
    assert fuser.mix.weight.grad is not None
    assert 0 < float(fuser.mix.weight.grad.abs().max()) < 1e4
    torch.optim.Adam(fuser.parameters(), lr=1e-3).step()
    assert float(fuser(tokens, x).detach().abs().max()) > 0


@each_layout
@each_paper_learner
def test_half_precision_and_empty_batches(kind: str, layout: str) -> None:
    module, fuser = PAPER[kind](), TokenFuser(S, C)
    nn.init.normal_(fuser.mix.weight)
    x = torch.randn(LAYOUTS[layout])
    exact, empty = module(x), x[:0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module(x)
        assert fuser(rounded, x).isfinite().all()
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.1)
    assert fuser(module(empty), empty).shape == empty.shape
    assert TokenLearner(dim=C)(torch.randn(2, 0, C, 3, 3)).shape == (2, 0, C, 8)


BAD_CALLS: list[tuple[Callable[[], object], str]] = [
    (lambda: TokenLearner(), "dim, the channels of its input, is None"),
    (lambda: TokenLearner(dim=4, num_layers=0), "num_layers is 0"),
    (lambda: TokenLearner(dim=4, ff_mult=1.5), "ff_mult is 1.5"),  # type: ignore[arg-type]
    (lambda: TokenLearner(dim=4)(torch.zeros(1, 5, 3, 3)), r"x is \[1, 5, 3, 3\]; pass \[..., 4"),
    (lambda: TokenLearner(dim=4)(torch.zeros(1, 4, 0, 3)), r"H, W >= 1"),
    (lambda: TokenLearner(dim=4)(torch.zeros(1, 4, 3, 3).byte()), "torch.uint8; pass a float"),
    (lambda: TokenLearnerV10(0, 4), "TokenLearnerV10: num_tokens is 0"),
    (lambda: TokenLearnerV11(4, -1), "TokenLearnerV11: dim is -1"),
    (lambda: TokenFuser(4, 4, bottleneck_dim=0), "bottleneck_dim is 0"),
    (lambda: TokenLearnerV10(2, 4)(torch.zeros(1, 6, 4)), r"6 .* no square.*pass \[B, 4, H, W\]"),
    (lambda: TokenLearnerV11(2, 4)(torch.zeros(1, 4, 9)), r"x is \[1, 4, 9\]; pass \[B, N, 4\]"),
    (lambda: TokenLearnerV11(7, 4)(torch.zeros(1, 4, 2, 3)), "6 positions for 7 tokens"),
    (lambda: fuse((1, 2, 4), (1, 4, 5, 3, 3)), r"\[1, 2, 4\] .*; pass tokens \[1, 5, 2, 4\]"),
    (lambda: fuse((1, 3, 4), (1, 9, 4)), r"tokens are \[1, 3, 4\] for x \[1, 9, 4\]"),
    (lambda: fuse((1, 2, 4), (1, 3, 3, 3)), r"TokenFuser: x is \[1, 3, 3, 3\]"),
]


def fuse(tokens: tuple[int, ...], x: tuple[int, ...]) -> object:
    return TokenFuser(2, 4)(torch.zeros(tokens), torch.zeros(x))


@pytest.mark.parametrize(("call", "message"), BAD_CALLS, ids=[text for _, text in BAD_CALLS])
def test_invalid_inputs(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ShapeError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_unknown_reduction() -> None:
    with pytest.raises(OptionError, match='"sum" or "mean"'):
        TokenLearnerV10(2, 4, reduction="max")  # type: ignore[arg-type]
