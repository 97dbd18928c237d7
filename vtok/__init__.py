"""vtok: video to tokens and back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtok.codec.decode import DecodeOptions, decode_file
    from vtok.codec.encode import EncodeOptions, encode_file
    from vtok.nn.streaming import StreamState
    from vtok.nn.token_learner import (
        TokenFuser,
        TokenLearner,
        TokenLearnerV10,
        TokenLearnerV11,
    )
    from vtok.nn.tokenizer import VideoTokenizer

__version__ = "0.1.0"

__all__ = [
    "DecodeOptions",
    "EncodeOptions",
    "StreamState",
    "TokenFuser",
    "TokenLearner",
    "TokenLearnerV10",
    "TokenLearnerV11",
    "VideoTokenizer",
    "decode_file",
    "encode_file",
]

_HOMES = {
    "DecodeOptions": "vtok.codec.decode",
    "EncodeOptions": "vtok.codec.encode",
    "StreamState": "vtok.nn.streaming",
    "TokenFuser": "vtok.nn.token_learner",
    "TokenLearner": "vtok.nn.token_learner",
    "TokenLearnerV10": "vtok.nn.token_learner",
    "TokenLearnerV11": "vtok.nn.token_learner",
    "VideoTokenizer": "vtok.nn.tokenizer",
    "decode_file": "vtok.codec.decode",
    "encode_file": "vtok.codec.encode",
}


def __getattr__(name: str) -> Any:
    # imported at first use: torch takes seconds, and `vtok --help` must not wait for it
    if name not in _HOMES:
        raise AttributeError(f"module 'vtok' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
