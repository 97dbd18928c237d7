"""What fails, as one line and an exit code: also what nobody foresaw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vtok.cli.console import print_json, say_error
from vtok.errors import OptionError, PartialFailure, UsageError, VtokError

FLAGS = {
    "codecs": "--with",
    "to": "--to",
    "start_seconds": "--start",
    "duration_seconds": "--duration",
    "timeout_seconds": "--timeout",
    "num_stages": "--stages",
    "num_bits": "--bits",
}
"""Flags of option fields that are not spelled like the field."""

ALL = """
Exit codes: 0 all done, 1 nothing could be done, 2 wrong usage, 3 some inputs failed, 4 damaged
or incompatible code file or checkpoint, 5 missing or unreadable input, 130 interrupted,
143 terminated.
"""
"""Of commands that take several inputs, each of which fails alone, and of vtok as a whole."""

WHOLE = ALL.replace("3 some inputs failed, ", "")
"""Of commands that do one thing, or nothing."""


def as_vtok_error(error: Exception, where: str = "") -> VtokError:
    """The error itself; for one that vtok did not raise on purpose, one that says what to do."""
    if isinstance(error, OptionError):
        flag = FLAGS.get(error.field, "--" + error.field.replace("_", "-"))
        return UsageError(f"{flag} {error.value}: expected {error.expected}")
    if isinstance(error, VtokError):
        return error
    start = f"{where}: " if where else ""
    if _is_out_of_memory(error):
        return VtokError(f"{start}out of memory: try a smaller --size, or --device cpu")
    text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return VtokError(f"{start}internal error: {text}; run with --debug for the traceback")


def report_failure(
    about: dict[str, Any], error: VtokError, *, as_json: bool, silent: bool = False
) -> None:
    """Say on stderr what went wrong with one of several, and as JSON too.

    Args:
        about: the JSON fields that name it.
        error: what went wrong.
        as_json: whether JSON is asked for.
        silent: leave stderr to whoever raises the error.
    """
    if as_json:
        failure = {
            "status": "failed",
            "error": type(error).__name__,
            "message": str(error),
            "exit_code": error.exit_code,
        }
        print_json({**about, **failure})
    if not silent:
        say_error(str(error))


def raise_failures(failures: Sequence[VtokError], total: int) -> None:
    """Raise what became of `total` inputs as a whole; nothing if none failed.

    Raises:
        VtokError: the error itself of the only input; of the kind that all of several had.
        PartialFailure: if some of several failed, or all in different ways.
    """
    if not failures:
        return
    if total == 1:
        raise failures[0]
    counts = f"{len(failures)} of {total} inputs failed"
    codes = {error.exit_code for error in failures}
    if len(failures) < total or len(codes) > 1:
        raise PartialFailure(counts) from failures[-1]
    raise type(failures[-1])(counts) from failures[-1]


def _is_out_of_memory(error: Exception) -> bool:
    # torch's own types and words, known by name: importing torch takes seconds
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
