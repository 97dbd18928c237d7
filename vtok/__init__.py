"""vtok: video to tokens and back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtok.dataset.api import encode_dataset
    from vtok.models.load import LoadedTokenizer, load
    from vtok.nn.streaming import StreamState
    from vtok.nn.token_learner import (
        TokenFuser,
        TokenLearner,
        TokenLearnerV10,
        TokenLearnerV11,
    )
    from vtok.nn.tokenizer import VideoTokenizer
    from vtok.pipeline.decode import DecodeOptions, decode_file
    from vtok.pipeline.encode import EncodeOptions, encode_file
    from vtok.tokens.decode import decode_tokens_file
    from vtok.tokens.encode import encode_tokens_file
    from vtok.tokens.model import TokenModel, load_token_model

__version__ = "0.1.0"

__all__ = [
    "DecodeOptions",
    "EncodeOptions",
    "LoadedTokenizer",
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
    "load",
    "load_token_model",
]

_HOMES = {
    "DecodeOptions": "vtok.pipeline.decode",
    "EncodeOptions": "vtok.pipeline.encode",
    "LoadedTokenizer": "vtok.models.load",
    "StreamState": "vtok.nn.streaming",
    "TokenFuser": "vtok.nn.token_learner",
    "TokenLearner": "vtok.nn.token_learner",
    "TokenLearnerV10": "vtok.nn.token_learner",
    "TokenLearnerV11": "vtok.nn.token_learner",
    "TokenModel": "vtok.tokens.model",
    "VideoTokenizer": "vtok.nn.tokenizer",
    "decode_file": "vtok.pipeline.decode",
    "decode_tokens_file": "vtok.tokens.decode",
    "encode_dataset": "vtok.dataset.api",
    "encode_file": "vtok.pipeline.encode",
    "encode_tokens_file": "vtok.tokens.encode",
    "load": "vtok.models.load",
    "load_token_model": "vtok.tokens.model",
}


def __getattr__(name: str) -> Any:
    # imported at first use: torch takes seconds, and `vtok --help` must not wait for it
    if name not in _HOMES:
        raise AttributeError(f"module 'vtok' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
