"""vtok: video to tokens and back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtok.codec.decode import DecodeOptions, decode_file
    from vtok.codec.encode import EncodeOptions, encode_file
    from vtok.codec.token_decode import decode_tokens_file
    from vtok.codec.token_encode import encode_tokens_file
    from vtok.codec.token_model import TokenModel, load_token_model
    from vtok.dataset.api import encode_dataset
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
    "TokenModel",
    "VideoTokenizer",
    "decode_file",
    "decode_tokens_file",
    "encode_dataset",
    "encode_file",
    "encode_tokens_file",
    "load_token_model",
]

_HOMES = {
    "DecodeOptions": "vtok.codec.decode",
    "EncodeOptions": "vtok.codec.encode",
    "StreamState": "vtok.nn.streaming",
    "TokenFuser": "vtok.nn.token_learner",
    "TokenLearner": "vtok.nn.token_learner",
    "TokenLearnerV10": "vtok.nn.token_learner",
    "TokenLearnerV11": "vtok.nn.token_learner",
    "TokenModel": "vtok.codec.token_model",
    "VideoTokenizer": "vtok.nn.tokenizer",
    "decode_file": "vtok.codec.decode",
    "decode_tokens_file": "vtok.codec.token_decode",
    "encode_dataset": "vtok.dataset.api",
    "encode_file": "vtok.codec.encode",
    "encode_tokens_file": "vtok.codec.token_encode",
    "load_token_model": "vtok.codec.token_model",
}


def __getattr__(name: str) -> Any:
    # imported at first use: torch takes seconds, and `vtok --help` must not wait for it
    if name not in _HOMES:
        raise AttributeError(f"module 'vtok' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
