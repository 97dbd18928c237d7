"""Encode and decode video in Python in four ways: files, tensors, a stream, random access.

    python examples/encode_decode.py [VIDEO] [--out encode_decode]

1. file to file in constant memory, like `vtok encode` and `vtok decode`
2. a clip in memory to codes, and back from the first few stages of the codes
3. a stream of chunks, which gives the same codes as one call
4. part of a code file, without decoding everything before it
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vtok import (
    DecodeOptions,
    EncodeOptions,
    StreamState,
    VideoTokenizer,
    decode_file,
    encode_file,
)
from vtok.errors import VtokError
from vtok.evaluation.metrics import psnr
from vtok.video.reader import VideoReader

SIZE, SECONDS = "128", 1.5  # short side in pixels, length to encode


def files(video: Path, out: Path) -> Path:
    """Encode a file, and decode its first two stages, 18 bits per position, to a video."""
    code_file = out / "clip.vtok"
    options = EncodeOptions(size=SIZE, duration_seconds=SECONDS, overwrite=True)
    made = encode_file(video, code_file, options=options)
    rough = DecodeOptions(num_stages=2, overwrite=True)
    shown = decode_file(code_file, out / "two_stages.mp4", options=rough)
    print(f"files: {made.frames} frames {made.width}x{made.height}, {made.codes:,} codes")
    print(f"  all stages {made.bytes:,} bytes, two stages {shown.bytes:,} bytes")
    return code_file


def read_clip(video: Path) -> Tensor:
    """Read the same part of the video as a clip [1, 3, T, H, W] in -1..1."""
    with VideoReader(video, size=SIZE, duration_seconds=SECONDS) as reader:
        frames = torch.from_numpy(np.concatenate(list(reader)))  # uint8 [T, H, W, 3]
    return frames.permute(3, 0, 1, 2).unsqueeze(0).float() / 127.5 - 1


def to_frames(clip: Tensor) -> np.ndarray:
    """Convert a clip [1, 3, T, H, W] in about -1..1 to frames uint8 [T, H, W, 3]."""
    return ((clip[0] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()


def tensors(tokenizer: VideoTokenizer, clip: Tensor) -> Tensor:
    """Encode a clip to codes [1, K, t, h, w], and decode the first few of K stages."""
    codes = tokenizer.encode(clip, quantize=True)
    print(f"tensors: clip {list(clip.shape)} -> codes {list(codes.shape)} of {codes.dtype}")
    length, size = clip.shape[2], (clip.shape[3], clip.shape[4])
    for stages in (1, 2, 4, 8):
        recon = tokenizer.decode(codes[:, :stages], num_frames=length, size=size)
        quality = psnr(to_frames(recon), to_frames(clip))
        print(f"  {stages} stages, {9 * stages} bits per position: PSNR {quality:.2f} dB")
    return codes


def stream(tokenizer: VideoTokenizer, clip: Tensor, expected: Tensor) -> None:
    """Encode the clip chunk by chunk, in memory that does not depend on its length."""
    state, step = StreamState(), tokenizer.temporal_compression
    first = 1 + step  # the first latent step holds only the first frame
    chunks = [clip[:, :, :first], *clip[:, :, first:].split(2 * step, dim=2)]
    codes = [tokenizer.encode(chunk, quantize=True, state=state) for chunk in chunks]
    equal = (torch.cat(codes, dim=2) == expected).float().mean()
    print(f"stream: {len(chunks)} chunks, {100 * equal:.1f} % of the codes equal to one call")


def random_access(code_file: Path, out: Path) -> None:
    """Decode half a second of a code file; only the needed chunks are read."""
    options = DecodeOptions(start_seconds=0.5, duration_seconds=0.5, overwrite=True)
    shown = decode_file(code_file, out / "part.mp4", options=options)
    print(f"random access: {shown.frames} frames from 0.5 s on")


def main() -> None:
    """Run all four."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", nargs="?", type=Path, default=Path(__file__).parent / "bee.mp4")
    parser.add_argument("--out", type=Path, default=Path("encode_decode"), help="folder to write")
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        code_file = files(args.video, args.out)
        tokenizer = VideoTokenizer.from_pretrained("vtok-base")
        clip = read_clip(args.video)
        with torch.inference_mode():
            codes = tensors(tokenizer, clip)
            stream(tokenizer, clip, codes)
        random_access(code_file, args.out)
    except VtokError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
