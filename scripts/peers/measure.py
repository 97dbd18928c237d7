"""Time one tokenizer in a separate process, on request: started by child.py.

Requests are lines of JSON on standard input, answers are lines of JSON on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from magvit2_peer import README, add_path, as_lists, make_peer
from processes import peak_memory
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SEED = 0
# messages of torch, C++ and oneDNN
OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "could not create a")


@dataclass(frozen=True)
class Peer:
    """Tokenizer to time."""

    encode: Callable[[Tensor], Any]  # clip [1, 3, T, H, W] -> codes or latents
    decode: Callable[[Any], Tensor]  # codes or latents -> clip
    parameters: int  # number of parameters
    note: str = ""  # result of a check, for the table


def vtok_base(dtype: torch.dtype) -> Peer:
    """Load the shipped model."""
    from vtok import VideoTokenizer

    return _ours(VideoTokenizer.from_pretrained("vtok-base").to(dtype))


def vtok_base_fast(dtype: torch.dtype) -> Peer:
    """Load the shipped model without the second pass of its encoder, as `--fast` does."""
    from vtok import VideoTokenizer

    tokenizer = VideoTokenizer.from_pretrained("vtok-base")
    tokenizer.second_pass = None
    return _ours(tokenizer.to(dtype))


def magvit2(dtype: torch.dtype) -> Peer:
    """Make magvit2-pytorch with the configuration of its README and random weights."""
    torch.manual_seed(SEED)
    peer = make_peer(**README).to(dtype)
    return Peer(
        lambda clip: peer.encode(clip, quantize=True).indices,
        peer.decode_from_code_indices,
        sum(p.numel() for p in peer.parameters()),
    )


def magvit2_imported(dtype: torch.dtype) -> Peer:
    """Import the same weights into vtok; check that codes and frames are equal."""
    from vtok.models.magvit2 import Magvit2Config, convert

    torch.manual_seed(SEED)
    peer = make_peer(**README)
    stated = {key: as_lists(value) for key, value in README.items()}
    ours = convert(peer.state_dict(), Magvit2Config.from_dict(stated)).tokenizer
    clip = torch.rand(1, 3, 5, 64, 64) * 2 - 1
    codes, mine = peer.encode(clip, quantize=True).indices, ours.encode(clip, quantize=True)
    equal = (codes == mine).double().mean().item()
    theirs = peer.decode_from_code_indices(codes)
    apart = (ours.decode(codes, num_frames=5) - theirs).abs().max().item()
    if equal < 0.999 or apart > 1e-4:
        raise RuntimeError(f"not the same: {equal:.4f} of the codes, frames differ by {apart:.1e}")
    del peer
    note = f"{equal:.4f} of codes equal, frames within {apart:.0e}"
    return _ours(ours.to(dtype), note)


def diffusers(name: str, **arguments: Any) -> Callable[[torch.dtype], Peer]:
    """Return a maker of an architecture of diffusers with random weights."""

    def make(dtype: torch.dtype) -> Peer:
        import diffusers as library

        torch.manual_seed(SEED)
        model = getattr(library, name)(**arguments).to(dtype).eval()
        return Peer(
            lambda clip: model.encode(clip).latent_dist.mode(),
            lambda latents: model.decode(latents).sample,
            sum(p.numel() for p in model.parameters()),
        )

    return make


PEERS: dict[str, Callable[[torch.dtype], Peer]] = {
    "vtok-base": vtok_base,
    "vtok-base --fast": vtok_base_fast,
    "magvit2-pytorch": magvit2,
    "magvit2 in vtok": magvit2_imported,
    # the published 4x8x8 model; the default of the class is 8x8x8
    "Cosmos 4x8x8": diffusers(
        "AutoencoderKLCosmos", temporal_compression_ratio=4, latents_mean=None, latents_std=None
    ),
    "Wan": diffusers("AutoencoderKLWan"),
    "CogVideoX": diffusers("AutoencoderKLCogVideoX"),
    "LTX-Video": diffusers("AutoencoderKLLTXVideo"),
    "HunyuanVideo": diffusers("AutoencoderKLHunyuanVideo"),
}


def _ours(tokenizer: nn.Module, note: str = "") -> Peer:
    tokenizer.eval()
    parameters = sum(p.numel() for p in tokenizer.parameters())
    return Peer(lambda x: tokenizer.encode(x, quantize=True), tokenizer.decode, parameters, note)


def operations(name: str, request: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Count the multiply-adds of a clip with meta tensors, in seconds at any size.

    Fails if the peer reads values of tensors; the first run counts then.
    """
    with torch.device("meta"):
        answer = run(PEERS[name](dtype), {**request, "count": True}, dtype)
    return {key: value for key, value in answer.items() if key.endswith("macs")}


@torch.inference_mode()
def run(peer: Peer, request: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Encode and decode a random clip once; returns seconds and, if requested, multiply-adds."""
    shape = (1, 3, request["frames"], request["height"], request["width"])
    clip = (torch.rand(shape) * 2 - 1).to(dtype)
    answer: dict[str, Any] = {}
    data: Any = clip
    for name, work in (("encode", peer.encode), ("decode", peer.decode)):
        counter = FlopCounterMode(display=False)
        with counter if request["count"] else nullcontext():
            begin = time.perf_counter()
            data = work(data)
            answer[name] = time.perf_counter() - begin
        if request["count"]:
            answer[f"{name} macs"] = counter.get_total_flops() / 2
    answer["shape"] = list(data.shape)
    return answer


def limit_memory(gigabytes: float) -> None:
    """Make allocations fail beyond the present memory plus `gigabytes`."""
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115, PTH123
    most = pages * os.sysconf("SC_PAGE_SIZE") + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def forget_peak() -> None:
    """Reset the peak memory, if the system can, to exclude the construction of the peer."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def serve(args: argparse.Namespace) -> None:
    """Answer requests until standard input ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print to standard output
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if peer is None:
                peer = PEERS[args.peer](DTYPES[args.dtype])
                forget_peak()
                limit_memory(args.memory)
                answer = {"parameters": peer.parameters, "note": peer.note}
            elif "operations" in request:
                answer = operations(args.peer, request, DTYPES[args.dtype])
            else:
                answer = run(peer, request, DTYPES[args.dtype])
        except Exception as error:  # any error of a peer is reported in its row
            answer = {"error": _reason(error, args.memory)}
        out.write(json.dumps({**answer, "peak mb": peak_memory(os.getpid())}) + "\n")


def _reason(error: Exception, memory: float) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        return f"more than {memory:.0f} GB of memory"
    if isinstance(error, ImportError):
        return f"not installed ({text[:80]})"
    return f"{type(error).__name__}: {text[:100]}"


def main() -> None:
    """Parse the arguments and answer requests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--memory", type=float, default=12.0, help="limit in GB, weights excluded")
    parser.add_argument("--peers", help="folder with the packages of the peers")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    add_path(args.peers)
    torch.set_num_threads(args.threads)
    with FlopCounterMode(display=False):  # the first use takes seconds to import
        torch.ones(1, 1) @ torch.ones(1, 1)
    serve(args)


if __name__ == "__main__":
    main()
