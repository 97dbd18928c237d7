"""Import magvit2-pytorch 0.5.1 without dependencies that inference does not use.

The package imports torchvision (for a perceptual loss; its version must match torch exactly) and a
trainer (which needs OpenCV). Stubs for both allow `VideoTokenizer` to be imported alone.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

VERSION = "0.5.1"
README: dict[str, Any] = {
    "image_size": 128,
    "init_dim": 64,
    "max_dim": 512,
    "codebook_size": 1024,
    "layers": (
        "residual", "compress_space", ("consecutive_residual", 2), "compress_space",
        ("consecutive_residual", 2), "linear_attend_space", "compress_space",
        ("consecutive_residual", 2), "attend_space", "compress_time",
        ("consecutive_residual", 2), "compress_time", ("consecutive_residual", 2), "attend_time",
    ),
}  # fmt: skip
"""Configuration from the README of magvit2-pytorch."""


def add_path(folder: str | Path | None) -> None:
    """Append a folder with the packages of the peers to the import path."""
    if folder is not None:
        sys.path.append(str(Path(folder).resolve()))


def peer_class() -> type:
    """Return the class `VideoTokenizer` of magvit2-pytorch.

    Raises:
        ImportError: The package or a dependency is missing, or the version differs.
    """
    vision, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    vision.models = models
    models.VGG16_Weights = type("VGG16_Weights", (), {"DEFAULT": None})
    trainer = types.ModuleType("magvit2_pytorch.trainer")
    trainer.VideoTokenizerTrainer = object
    stubs = {"torchvision": vision, "torchvision.models": models, trainer.__name__: trainer}
    added = {name: stub for name, stub in stubs.items() if name not in sys.modules}
    sys.modules.update(added)
    try:
        from magvit2_pytorch.magvit2_pytorch import VideoTokenizer
        from magvit2_pytorch.version import __version__
    finally:
        for name in added:
            del sys.modules[name]
    if __version__ != VERSION:
        raise ImportError(f"magvit2-pytorch {__version__}: expected {VERSION}")
    return VideoTokenizer


def make_peer(**arguments: Any) -> Any:
    """Make a tokenizer in eval mode, without perceptual loss and with a minimal discriminator."""
    small = {"dim": 4, "image_size": 8, "channels": 3, "max_dim": 8}
    made = peer_class()(perceptual_loss_weight=0.0, use_gan=False, discr_kwargs=small, **arguments)
    return made.eval()


def as_lists(value: Any) -> Any:
    """Convert nested tuples to lists, as in JSON and TOML."""
    return [as_lists(item) for item in value] if isinstance(value, tuple) else value
