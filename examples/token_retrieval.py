"""Find moments in videos that look similar to a given one, by their learned tokens.

    python examples/token_retrieval.py videos/*.mp4 --query clip.mp4 --at 3.5

Every video is encoded to a token file in --index once, and cut into windows of about a second. The
feature of a window is the mean of its tokens over time, standardized over all windows. Windows are
ranked by cosine similarity to the query; those that overlap with it are left out. The table goes
to stdout, a sheet of pictures to --out.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from vtok import EncodeOptions, TokenModel, encode_tokens_file, load_token_model
from vtok.errors import InputError, UsageError, VtokError
from vtok.evaluation.pictures import draw_sheet
from vtok.tokens.encode import are_tokens_encoded
from vtok.video.frames import Frames
from vtok.video.images import write_png
from vtok.video.reader import VideoReader

SIDE = 128  # short side of encoded frames, side of pictures
COLUMNS = 4  # of the sheet


@dataclass(frozen=True, eq=False)
class Window:
    """Part of a video.

    Attributes:
        path: The video.
        start, end: Time in seconds.
        tokens: Mean over latent steps, float [S * dim].
    """

    path: Path
    start: float
    end: float
    tokens: np.ndarray

    def overlaps(self, other: "Window") -> bool:
        """Return True if two windows share a moment."""
        return self.path == other.path and self.start < other.end and other.start < self.end

    @property
    def label(self) -> str:
        """Name and time, for the table and the sheet."""
        return f"{self.path.name} {self.start:.1f} s"


def token_file(path: Path, index: Path, model: TokenModel, count: int) -> Path:
    """Return the token file of a video, and encode it if it is missing or outdated."""
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]
    made = index / f"{path.stem}-{name}.tokens.safetensors"
    how = EncodeOptions(size=str(SIDE), overwrite=True)
    if not made.exists() or not are_tokens_encoded(made, path, model, count, how):
        print(f"{path}: encoding", file=sys.stderr)
        encode_tokens_file(path, made, model=model, num_tokens=count, options=how)
    return made


def windows(path: Path, tokens: Path, seconds: float) -> list[Window]:
    """Cut a token file into windows; the last one may be shorter."""
    held = load_file(tokens)  # tokens float16 [t, S, dim], times float64 [t, 2]
    times, numbers = held["times"], held["tokens"].astype(np.float32)
    found = []
    for number in range(int(times[-1, 1] / seconds) + 1):
        inside = (times[:, 0] >= number * seconds) & (times[:, 0] < (number + 1) * seconds)
        if inside.any():
            span = times[inside]
            mean = numbers[inside].mean(axis=0).ravel()
            found.append(Window(path, float(span[0, 0]), float(span[-1, 1]), mean))
    return found


def rank(query: Window, others: list[Window]) -> list[tuple[float, Window]]:
    """Rank windows by cosine similarity to the query, most similar first."""
    rows = np.stack([window.tokens for window in (query, *others)]).astype(np.float64)
    rows -= rows.mean(axis=0)
    rows /= rows.std(axis=0).clip(min=1e-9)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-9)
    similarity = rows[1:] @ rows[0]
    order = np.argsort(-similarity, kind="stable")
    return [(float(similarity[number]), others[number]) for number in order]


def picture(window: Window) -> Frames:
    """Read the centre of the middle frame, uint8 [SIDE, SIDE, 3]."""
    middle = (window.start + window.end) / 2
    with VideoReader(window.path, size=str(SIDE), start_seconds=middle) as reader:
        frame = next(reader)[0]
    top, left = ((side - SIDE) // 2 for side in frame.shape[:2])
    return frame[top : top + SIDE, left : left + SIDE]


def draw(query: Window, found: list[tuple[float, Window]]) -> Frames:
    """Draw the query and the windows found, with captions."""
    tiles = [picture(window) for window in (query, *(window for _, window in found))]
    words = [f"query {query.start:.1f} s", *(f"{s:.2f} at {w.start:.1f} s" for s, w in found)]
    while len(tiles) % COLUMNS:
        tiles.append(np.full_like(tiles[0], 18))
        words.append("")
    starts = range(0, len(tiles), COLUMNS)
    return draw_sheet(
        [tiles[k : k + COLUMNS] for k in starts], captions=[words[k : k + COLUMNS] for k in starts]
    )


def search(args: argparse.Namespace) -> tuple[Window, list[tuple[float, Window]]]:
    """Return the query window and its neighbours.

    Raises:
        InputError: A video is missing or unreadable.
        UsageError: The moment is outside of the query, or there are no other windows.
    """
    if args.seconds <= 0 or args.top < 1:
        raise UsageError("--seconds and --top: expected more than 0")
    model = load_token_model(args.token_learner)
    args.index.mkdir(parents=True, exist_ok=True)
    known: list[Window] = []
    query = None
    for path in dict.fromkeys([args.query, *args.videos]):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        made = windows(path, token_file(path, args.index, model, args.num_tokens), args.seconds)
        if path == args.query:
            query = next((window for window in made if window.start <= args.at < window.end), None)
        known += made
    if query is None:
        raise UsageError(f"--at {args.at:g}: {args.query} is shorter")
    others = [window for window in known if not window.overlaps(query)]
    if not others:
        raise UsageError(f"{args.query}: nothing to compare with: give more videos")
    return query, rank(query, others)[: args.top]


def main() -> None:
    """Search, print and draw the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--query", type=Path, required=True, help="a video")
    parser.add_argument("--at", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--token-learner", default="v11", help="a name, or a checkpoint")
    parser.add_argument("--num-tokens", type=int, default=8, metavar="S")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a window")
    parser.add_argument("--top", type=int, default=7, metavar="N")
    parser.add_argument("--index", type=Path, default=Path("token_index"), help="folder")
    parser.add_argument("--out", type=Path, default=Path("retrieval.png"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        query, found = search(args)
        write_png(args.out, draw(query, found), overwrite=True)
    except VtokError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if args.json:
        rows = [
            {"video": str(window.path), "start": window.start, "end": window.end, "similarity": s}
            for s, window in found
        ]
        print(json.dumps({"query": str(query.path), "start": query.start, "found": rows}))
        return
    print(f"similar to {query.label}:")
    for similarity, window in found:
        print(f"  {similarity:5.2f}  {window.label}")
    print(f"pictures: {args.out}")


if __name__ == "__main__":
    main()
