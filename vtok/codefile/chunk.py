"""A chunk of a code file, with its codes or as it lies there."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vtok.codefile.parts import CodedPart


@dataclass(frozen=True, eq=False)
class Chunk:
    """The codes of a run of frames.

    Attributes:
        first_frame: number of the first one, from 0.
        num_frames: frames that the chunk shows, without padding.
        codes: int64 `[stages, num_codebooks, t, h, w]`, 0 <= code < codebook_size.
        opens: of the first chunk of a segment, the frames dropped at its start; None of others.
        skip: frames to drop of what the codes decode to, before those shown.
        coders: of each stage.
    """

    first_frame: int
    num_frames: int
    codes: npt.NDArray[np.int64]
    opens: int | None = None
    skip: int = 0
    coders: tuple[int, ...] = ()

    @property
    def restart(self) -> bool:
        """Whether the decoder starts afresh here."""
        return self.opens is not None


@dataclass(frozen=True, eq=False)
class StoredChunk:
    """A chunk as it lies in the file, to be copied.

    Attributes:
        num_frames: frames that it shows.
        num_steps: latent steps.
        parts: of the first stage, the second, and so on.
        opens: of the first chunk of a segment, the frames dropped at its start; None of others.
    """

    num_frames: int
    num_steps: int
    parts: tuple[CodedPart, ...]
    opens: int | None
