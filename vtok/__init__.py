"""A video tokenizer that runs on a CPU: videos to tokens and back.

The names in `__all__` are the public API; `import vtok` loads none of them but the errors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vtok.errors import (
    CheckpointError,
    CodeFileError,
    InputError,
    OptionError,
    OutputError,
    PartialFailure,
    ShapeError,
    UsageError,
    VideoError,
    VtokError,
)

if TYPE_CHECKING:
    from vtok.codefile.reader import CodeFileReader
    from vtok.dataset.api import encode_dataset
    from vtok.dataset.folder import Partition, frame_times
    from vtok.dataset.options import DatasetOptions
    from vtok.dataset.scheduler import Totals
    from vtok.evaluation.compare import Comparison, compare_file
    from vtok.evaluation.evaluate import EvalOptions, Part, evaluate_file
    from vtok.evaluation.results import ClipResult, CodeUsage, Point
    from vtok.models.checkpoint import CheckpointInfo, list_models, save_checkpoint
    from vtok.models.load import LoadedTokenizer, ModelCache, load
    from vtok.nn.config import TokenizerConfig
    from vtok.nn.geometry import Geometry, Stream, Window
    from vtok.nn.interface import StreamState, Tokenizer
    from vtok.nn.token_learner import TokenFuser, TokenLearner, TokenLearnerV10, TokenLearnerV11
    from vtok.nn.tokenizer import LossBreakdown, VideoTokenizer
    from vtok.pipeline.decode import decode_file
    from vtok.pipeline.edit import cut_file, dump_file, join_files, pack_file
    from vtok.pipeline.encode import encode_file
    from vtok.pipeline.inspect import inspect_file, verify_file
    from vtok.pipeline.options import CutOptions, DecodeOptions, DumpOptions, EncodeOptions
    from vtok.pipeline.result import Result
    from vtok.tokens.decode import decode_tokens_file
    from vtok.tokens.encode import TokenResult, encode_tokens_file
    from vtok.tokens.model import TokenModel, load_token_model
    from vtok.training.config import TrainingConfig
    from vtok.training.trainer import train

from vtok import tokens as _tokens  # noqa: F401 - registers its files; imports no torch

__version__ = "0.2.0"

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "ClipResult",
    "CodeFileError",
    "CodeFileReader",
    "CodeUsage",
    "Comparison",
    "CutOptions",
    "DatasetOptions",
    "DecodeOptions",
    "DumpOptions",
    "EncodeOptions",
    "EvalOptions",
    "Geometry",
    "InputError",
    "LoadedTokenizer",
    "LossBreakdown",
    "ModelCache",
    "OptionError",
    "OutputError",
    "Part",
    "PartialFailure",
    "Partition",
    "Point",
    "Result",
    "ShapeError",
    "Stream",
    "StreamState",
    "TokenFuser",
    "TokenLearner",
    "TokenLearnerV10",
    "TokenLearnerV11",
    "TokenModel",
    "TokenResult",
    "Tokenizer",
    "TokenizerConfig",
    "Totals",
    "TrainingConfig",
    "UsageError",
    "VideoError",
    "VideoTokenizer",
    "VtokError",
    "Window",
    "compare_file",
    "cut_file",
    "decode_file",
    "decode_tokens_file",
    "dump_file",
    "encode_dataset",
    "encode_file",
    "encode_tokens_file",
    "evaluate_file",
    "frame_times",
    "inspect_file",
    "join_files",
    "list_models",
    "load",
    "load_token_model",
    "pack_file",
    "save_checkpoint",
    "train",
    "verify_file",
]

_NAMES = {
    "vtok.codefile.reader": "CodeFileReader",
    "vtok.dataset.api": "encode_dataset",
    "vtok.dataset.folder": "Partition frame_times",
    "vtok.dataset.options": "DatasetOptions",
    "vtok.dataset.scheduler": "Totals",
    "vtok.evaluation.compare": "Comparison compare_file",
    "vtok.evaluation.evaluate": "EvalOptions Part evaluate_file",
    "vtok.evaluation.results": "ClipResult CodeUsage Point",
    "vtok.models.checkpoint": "CheckpointInfo list_models save_checkpoint",
    "vtok.models.load": "LoadedTokenizer ModelCache load",
    "vtok.nn.config": "TokenizerConfig",
    "vtok.nn.geometry": "Geometry Stream Window",
    "vtok.nn.interface": "Tokenizer",
    "vtok.nn.layers": "StreamState",
    "vtok.nn.token_learner": "TokenFuser TokenLearner TokenLearnerV10 TokenLearnerV11",
    "vtok.nn.tokenizer": "LossBreakdown VideoTokenizer",
    "vtok.pipeline.decode": "decode_file",
    "vtok.pipeline.edit": "cut_file dump_file join_files pack_file",
    "vtok.pipeline.encode": "encode_file",
    "vtok.pipeline.inspect": "inspect_file verify_file",
    "vtok.pipeline.options": "CutOptions DecodeOptions DumpOptions EncodeOptions",
    "vtok.pipeline.result": "Result",
    "vtok.tokens.decode": "decode_tokens_file",
    "vtok.tokens.encode": "TokenResult encode_tokens_file",
    "vtok.tokens.model": "TokenModel load_token_model",
    "vtok.training.config": "TrainingConfig",
    "vtok.training.trainer": "train",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    # imported on first use: torch takes seconds, and `vtok --help` must not wait for it
    if name not in _HOMES:
        raise AttributeError(f"module 'vtok' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
