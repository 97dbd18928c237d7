"""Run commands in this process, and make small inputs for them."""

import json
from pathlib import Path
from typing import Any

from models import make_tokenizer
from typer.testing import CliRunner, Result

from vtok.cli.app import app
from vtok.models.checkpoint import save_checkpoint
from vtok.models.load import LoadedTokenizer, load
from vtok.pipeline.encode import encode_file
from vtok.pipeline.options import EncodeOptions


def vtok(*arguments: str | Path, data: bytes | None = None) -> Result:
    """Run `vtok` with these arguments and `data` on standard input."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=data)


def rows(result: Result) -> list[dict[str, Any]]:
    """Parse the JSON lines that a command printed."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def tiny_checkpoint(folder: Path, name: str = "tiny", seed: int = 0) -> Path:
    """Write the checkpoint of a tiny tokenizer with three stages of 6 bits."""
    path = folder / f"{name}.safetensors"
    save_checkpoint(path, make_tokenizer("fast", seed), name)
    return path


def tiny_model(folder: Path) -> LoadedTokenizer:
    """Write and load the tiny tokenizer."""
    return load(tiny_checkpoint(folder))


def encode(source: Path, output: Path, model: LoadedTokenizer, **options: Any) -> Path:
    """Encode a file and return the path of the codes."""
    encode_file(source, output, model=model, options=EncodeOptions(**options))
    return output
