#!/usr/bin/env python
"""Run the commands on a file of every family, and compare codes and frames with the originals.

scripts/peers/walk.py --originals FOLDER | scripts/fill_page.py docs/tokenizers.md walk

FOLDER holds clones of the repositories of `CLONES`; the packages are those of FAMILY_parity.py. The
code of each family makes a small model with random weights and saves it in the published format.
`vtok import`, `models`, `encode`, `dump` and `decode` process a video whose frames fill no window
and whose sides are no multiple of the compression. The original processes the same video, padded
and cut into windows as docs/tokenizers.md describes. Frames of vtok are integers: their difference
is the part that rounding does not explain.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import cosmos_parity
import emu3_parity
import numpy as np
import open_magvit2_parity as lfq
import taehv_parity
import torch
import torch.nn.functional as F
import vidtok_parity
from foreign import TOLERANCE, make_clip, scramble
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor
from typer.testing import CliRunner

from vtok import __version__ as vtok_version
from vtok.cli.app import app

FRAMES, SIZE = 38, (45, 51)
CLONES = (
    "Cosmos-Tokenizer", "cosmos-predict1", "VidTok", "SEED-Voken", "1xgpt", "O2-MAGVIT2", "Emu3",
    "taehv",
)  # fmt: skip
HEADS = ("model", "file", "compression", "time", "codes", "latents", "frames")


@dataclass(frozen=True)
class Peer:
    """An original with random weights.

    Attributes:
        path: File or folder in the published format.
        encode: Clip [1, 3, T, H, W] to codes [1, 1, t, h, w] or latents [1, D, t, h, w], and to
            the values that are decoded.
        decode: Those values to a clip.
        options: Options of `vtok import`.
    """

    path: Path
    encode: Callable[[Tensor], tuple[Tensor, Any]]
    decode: Callable[[Any], Tensor]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """Maker of an original, which gets the folder of the clones and one for its file."""

    family: str
    make: Callable[[Path, Path], Peer]
    size: tuple[int, int] = SIZE


def cosmos(name: str, *options: str) -> Callable[[Path, Path], Peer]:
    """Make a case of cosmos_parity.py."""

    def make(clones: Path, folder: Path) -> Peer:
        case = cosmos_parity.CASES[name]
        original, path = cosmos_parity.Original(case), folder / case.name
        path.mkdir()
        original.save(path)
        return Peer(path, lambda clip: 2 * original.encode(clip)[1:], original.decode, options)

    return make


def vidtok(name: str, file: str, *options: str) -> Callable[[Path, Path], Peer]:
    """Make a case of vidtok_parity.py."""

    def make(clones: Path, folder: Path) -> Peer:
        vidtok_parity.add_original(str(clones / "VidTok"))
        original, path = vidtok_parity.Original(vidtok_parity.CASES[name]).eval(), folder / file
        vidtok_parity.save(original.state_dict(), path)

        def encode(clip: Tensor) -> tuple[Tensor, Tensor]:
            latents, codes = original.encode(clip)
            return latents if codes is None else codes[:, None], latents

        return Peer(path, encode, original.decode, options)

    return make


def of_lfq(name: str, file: str) -> Callable[[Path, Path], Peer]:
    """Make a case of open_magvit2_parity.py."""

    def make(clones: Path, folder: Path) -> Peer:
        original, path = lfq.CASES[name][0](clones), folder / file
        original.save(path)
        return Peer(path, original.encode, original.decode)

    return make


def emu3(clones: Path, folder: Path) -> Peer:
    """Make Emu3's folder."""
    model = emu3_parity.CASES["8x8, attention at two levels"][0](clones)
    model.save_pretrained(folder)
    encode = lambda clip: 2 * (emu3_parity.encode(model, clip, 4),)  # noqa: E731
    return Peer(folder, encode, lambda codes: emu3_parity.decode(model, codes, 4))


def taehv(name: str) -> Callable[[Path, Path], Peer]:
    """Make a case of taehv_parity.py."""

    def make(clones: Path, folder: Path) -> Peer:
        case, module = taehv_parity.CASES[name], importlib.import_module("taehv")
        original = taehv_parity.Original(module, case, folder)
        decode = lambda latents: original.decode(latents) * 2 - 1  # noqa: E731
        return Peer(folder / case.file, lambda clip: 2 * (original.encode(clip),), decode)

    return make


def diffusers(kind: str, **arguments: Any) -> Callable[[Path, Path], Peer]:
    """Make the folder of an autoencoder of diffusers."""

    def make(clones: Path, folder: Path) -> Peer:
        model = getattr(importlib.import_module("diffusers"), kind)(**arguments).eval()
        scramble(model)
        model.save_pretrained(folder / "vae")
        encode = lambda clip: 2 * (model.encode(clip).latent_dist.mode(),)  # noqa: E731
        return Peer(folder, encode, lambda latents: model.decode(latents).sample)

    return make


FOUR = (4, 4, 4, 4)
WAN = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
WAN_2_2 = {
    **WAN, "decoder_base_dim": 8, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16,
}  # fmt: skip
ONE_LAYER = {"latent_channels": 4, "layers_per_block": 1, "block_out_channels": FOUR}
LTX = {
    "latent_channels": 8, "block_out_channels": FOUR, "decoder_block_out_channels": FOUR,
    "layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5, "patch_size": 2,
}  # fmt: skip
CASES = {
    "Cosmos DV8x8x8, two .jit files": Case("cosmos", cosmos("DV8x8x8")),
    "Cosmos DV8x8x8, windows of 25": Case("cosmos", cosmos("DV8x8x8", "--window", "25")),
    "Cosmos DV8x8x8, stream": Case("cosmos", cosmos("DV8x8x8", "--window", "0")),
    "Cosmos DV4x8x8, model.pt": Case("cosmos", cosmos("DV4x8x8 of 360p, model.pt")),
    "Cosmos DV8x16x16 of 0.1, autoencoder.jit": Case(
        "cosmos", cosmos("DV8x16x16, first code"), (93, 125)
    ),
    "Cosmos CV8x8x8, autoencoder.jit": Case("cosmos", cosmos("CV8x8x8")),
    "Cosmos CV4x8x8 of 0.1, two .jit files": Case("cosmos", cosmos("CV4x8x8, first code")),
    "Open-MAGVIT2 video": Case("open-magvit2", of_lfq("video", "video_128_262144.ckpt")),
    "Open-MAGVIT2 image, 16x16": Case("open-magvit2", of_lfq("image 16x16", "image.ckpt")),
    "1X": Case("1x", of_lfq("1X", "magvit2.ckpt")),
    "O2-MAGVIT2": Case("o2-magvit2", of_lfq("O2", "model.safetensors")),
    "Emu3": Case("emu3", emu3),
    "taehv: taew2_1.pth": Case("taehv", taehv("taew2_1, one frame")),
    "taehv: taew2_2.pth": Case("taehv", taehv("taew2_2")),
    "taehv: taeltx_2.pth": Case("taehv", taehv("taeltx_2")),
    "diffusers: Wan 2.1": Case("diffusers", diffusers("AutoencoderKLWan", **WAN)),
    "diffusers: Wan 2.2": Case("diffusers", diffusers("AutoencoderKLWan", **WAN_2_2)),
    "diffusers: CogVideoX": Case(
        "diffusers", diffusers("AutoencoderKLCogVideoX", norm_num_groups=2, **ONE_LAYER)
    ),
    "diffusers: LTX-Video": Case("diffusers", diffusers("AutoencoderKLLTXVideo", **LTX)),
    "diffusers: HunyuanVideo": Case(
        "diffusers", diffusers("AutoencoderKLHunyuanVideo", norm_num_groups=4, **ONE_LAYER)
    ),
    "VidTok 1.0 FSQ, published name": Case(
        "vidtok", vidtok("1.0 FSQ 4096, 4x8x8", "vidtok_fsq_causal_488_4096.ckpt")
    ),
    "VidTok 1.0 KL, --version": Case(
        "vidtok", vidtok("1.0 KL, 2x8x8", "last.ckpt", "--version", "1.0")
    ),
    "VidTok 1.1 FSQ 8x8x8": Case(
        "vidtok", vidtok("1.1 FSQ 32768, 8x8x8", "vidtok_fsq_causal_888_32768_v1_1.ckpt")
    ),
    "VidTok 1.1 KL, --version": Case(
        "vidtok", vidtok("1.1 KL, 2x8x8", "last.ckpt", "--version", "1.1")
    ),
    "VidTok FSQ, not causal": Case(
        "vidtok", vidtok("not causal FSQ 262144, 4x8x8", "vidtok_fsq_noncausal_488_262144.ckpt")
    ),
    "VidTok KL, not causal": Case(
        "vidtok", vidtok("not causal KL, 4x16x16", "vidtok_kl_noncausal_41616_4chn.ckpt")
    ),
}


def vtok(*arguments: str | Path) -> str:
    """Run a command, and return its standard output.

    Raises:
        SystemExit: It failed; the message has its standard error.
    """
    words = [str(argument) for argument in arguments]
    done = CliRunner().invoke(app, words)
    if done.exit_code:
        raise SystemExit(f"vtok {' '.join(words)}: exit {done.exit_code}\n{done.stderr}")
    return done.stdout


def windows_of(frames: Tensor, facts: dict[str, Any]) -> Iterator[Tensor]:
    """Split frames [1, 3, T, H, W] into the windows that docs/tokenizers.md describes.

    The last window is filled with its last frame, and so is the last step of a stream; sides are
    extended to whole latent positions by their last row and column.
    """
    temporal, spatial = (facts[f"{axis}_compression"] for axis in ("temporal", "spatial"))
    count, height, width = frames.shape[2:]
    length = facts["window_frames"] or count + (1 - count) % temporal
    for part in frames.split(length, 2):
        padding = (0, -width % spatial, 0, -height % spatial, 0, length - part.shape[2])
        yield F.pad(part, padding, "replicate")


def dumped(path: Path) -> NDArray[Any]:
    """Return the codes [1, t, h, w] of a code file, or the latents [D, t, h, w] of a file."""
    if path.suffix == ".safetensors":
        return load_file(path)["latents"]
    header, *rows = [json.loads(line) for line in vtok("dump", path, "-q").splitlines()]
    shape = (1, -1, *header["header"]["format"]["grid"])
    return np.concatenate([np.reshape(row["codes"], shape) for row in rows if "codes" in row], 1)


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a picture [H, W, 3]."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(part)) + kind + part
        data += struct.pack(">I", zlib.crc32(kind + part))
    path.write_bytes(data)


@torch.inference_mode()
def compare(case: Case, clones: Path, folder: Path) -> dict[str, Any]:
    """Run the commands on the file of a case; returns what the table shows."""
    torch.manual_seed(0)
    clip = make_clip(1, FRAMES, *case.size)
    pictures = ((clip[0].movedim(0, -1) + 1) * 127.5).round().byte().numpy()
    (folder / "frames").mkdir()
    for number, picture in enumerate(pictures):
        save_png(folder / "frames" / f"{number:03}.png", picture)
    (folder / "published").mkdir()
    with contextlib.redirect_stdout(sys.stderr):  # some originals print
        peer = case.make(clones, folder / "published")
    os.environ["VTOK_MODELS"] = str(folder / "models")
    vtok("import", case.family, peer.path, "--name", "walk", *peer.options, "-q")
    facts = json.loads(vtok("models", "walk", "--json"))
    continuous = facts["entries"] is None
    coded = folder / ("clip.safetensors" if continuous else "clip.vtok")
    options = ("--latents", "float32") if continuous else ()
    where = ("--model", "walk", "--dtype", "float32", "--device", "cpu", "-q")
    vtok("encode", folder / "frames", "--fps", "24", "-o", coded, *options, *where)
    vtok("decode", coded, "-o", folder / "decoded.npy", *where)
    theirs, shown = [], []
    for part in windows_of(clip, facts):
        codes, values = peer.encode(part)
        theirs.append(codes[0])
        shown.append(peer.decode(values)[0])
    expected, found = torch.cat(theirs, 1).numpy(), dumped(coded)
    levels = torch.cat(shown, 1).clamp(-1, 1)[:, :FRAMES, : case.size[0], : case.size[1]] * 127.5
    rounded = np.load(folder / "decoded.npy").astype(np.float32) - 127.5
    apart = np.abs(levels.movedim(0, -1).numpy() - rounded).max() - 0.5
    same_shape = found.shape == expected.shape
    return {
        "file": _file_of(peer.path),
        "facts": facts,
        "equal": same_shape and (continuous or bool(np.array_equal(found, expected))),
        "latents": float(np.abs(found - expected).max()) if continuous and same_shape else None,
        "frames": max(0.0, float(apart)) / 127.5,
    }


def _file_of(path: Path) -> str:
    """Name a file, or the files of a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return ", ".join(file.name for file in files)


def row(name: str, found: dict[str, Any]) -> list[str]:
    """Format the cells of a case."""
    facts, latents = found["facts"], found["latents"]
    time, space, window = (
        facts[key] for key in ("temporal_compression", "spatial_compression", "window_frames")
    )
    codes = "none" if facts["entries"] is None else "equal" if found["equal"] else "differ"
    return [
        name, f"`{found['file']}`", f"{time}x{space}x{space}",
        f"windows of {window}" if window else "stream", codes,
        "" if latents is None else f"{latents:.1e}", f"{found['frames']:.1e}",
    ]  # fmt: skip


def versions(clones: Path) -> str:
    """Describe the packages and the clones in one line."""
    packages = [f"vtok {vtok_version}", f"torch {torch.__version__}"]
    packages.append(f"diffusers {metadata.version('diffusers')}")
    command = ["git", "rev-parse", "--short=7", "HEAD"]
    for name in CLONES:
        done = subprocess.run(
            command, cwd=clones / name, capture_output=True, text=True, check=True
        )
        packages.append(f"{name} {done.stdout.strip()}")
    return ", ".join(packages)


def main() -> None:
    """Print a table; the exit code is 1 if a case differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--originals", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--only", metavar="CASE", choices=CASES, help=", ".join(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    folders = ("Cosmos-Tokenizer", "cosmos-predict1", "taehv")
    sys.path[:0] = [str(args.originals / name) for name in folders]
    print(f"{FRAMES} frames, {versions(args.originals)}\n")
    print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|", flush=True)
    failed = []
    for name, case in CASES.items():
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = compare(case, args.originals, Path(folder))
        print("| " + " | ".join(row(name, found)) + " |", flush=True)
        if not found["equal"] or max(found["latents"] or 0, found["frames"]) > TOLERANCE:
            failed.append(name)
    if failed:
        sys.exit(f"not equal: {', '.join(failed)}")


if __name__ == "__main__":
    main()
