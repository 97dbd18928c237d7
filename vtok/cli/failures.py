"""Errors as one line on standard error and an exit code; option names as flags."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from vtok.cli.console import print_json, say_error
from vtok.errors import InputError, OptionError, PartialFailure, UsageError, VtokError

ALL = """
Exit codes: 0 all done, 1 nothing could be done, 2 wrong usage, 3 some inputs failed, 4 damaged
or incompatible code file or checkpoint, 5 missing or unreadable input, 130 interrupted,
143 terminated.
"""
"""End of the help of commands whose inputs can fail one by one, and of `vtok` itself."""
WHOLE = ALL.replace("3 some inputs failed, ", "")
"""End of the help of commands that succeed or fail as a whole."""

_FIELD = re.compile(r"`(\w+)`")
_flags: dict[str, str] = {}


def use_flags(params: Iterable[Any]) -> None:
    """Set the table from option fields to flags: the parameters of the command that runs."""
    _flags.clear()
    for param in params:
        if param.param_type_name == "option":
            _flags[param.name] = max(param.opts, key=len)


def with_flags(text: str) -> str:
    """Replace option fields in backticks by the flags of the command that runs."""
    return _FIELD.sub(lambda match: _flags.get(match[1], match[0]), text)


def as_vtok_error(error: Exception, where: str = "") -> VtokError:
    """Convert any error to one with a message for the user.

    Args:
        error: an option error is converted to one that names the flag; an unexpected error to
            one that asks for --debug.
        where: the input that was processed, for unexpected errors.
    """
    if isinstance(error, OptionError) and error.field in _flags:
        expected = with_flags(error.expected)
        return UsageError(f"{_flags[error.field]} {error.value}: expected {expected}")
    if isinstance(error, VtokError):
        text = str(error)
        return error if with_flags(text) == text else _reworded(error, with_flags(text))
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return InputError(f"{error.filename}: name too long")
    start = f"{where}: " if where else ""
    if _is_out_of_memory(error):
        return VtokError(f"{start}out of memory: try a smaller --size, or --device cpu")
    text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return VtokError(f"{start}internal error: {text}; run with --debug for the traceback")


class Failures:
    """Collects the errors of several inputs, so that one does not stop the others.

    Args:
        total: number of inputs. The error of an only input is left to `raise_if_any`.
        as_json: print each error as JSON as well.
    """

    def __init__(self, total: int, *, as_json: bool) -> None:
        self._total, self._as_json = total, as_json
        self._errors: list[VtokError] = []

    @contextmanager
    def catch(self, where: str, **names: str) -> Iterator[None]:
        """Report an error of the block and continue after it.

        Args:
            where: the input, for the message of an unexpected error.
            names: JSON fields that identify the input.
        """
        try:
            yield
        except BrokenPipeError:
            raise  # the reader of our output has exited
        except Exception as error:
            known = as_vtok_error(error, where)
            known.__cause__ = None if known is error else error  # for --debug
            self._errors.append(known)
            self._report(known, names)

    def raise_if_any(self) -> None:
        """Raise one error for all inputs.

        Raises:
            VtokError: the error of an only input, or one of the kind that all inputs had.
            PartialFailure: if some inputs failed, or all with different exit codes.
        """
        errors, total = self._errors, self._total
        if not errors:
            return
        if total == 1:
            raise errors[0]
        counts = f"{len(errors)} of {total} inputs failed"
        if len(errors) < total or len({error.exit_code for error in errors}) > 1:
            raise PartialFailure(counts) from errors[-1]
        raise _reworded(errors[-1], counts) from errors[-1]

    def _report(self, error: VtokError, names: dict[str, str]) -> None:
        if self._as_json:
            facts = {"error": type(error).__name__, "message": str(error)}
            print_json({**names, "status": "failed", **facts, "exit_code": error.exit_code})
        if self._total > 1:
            say_error(str(error))


def _reworded(error: VtokError, text: str) -> VtokError:
    """An error of the same kind with another message."""
    public = (kind for kind in type(error).__mro__ if kind.__module__ == VtokError.__module__)
    kind = next(public)
    return UsageError(text) if kind is OptionError else kind(text)


def _is_out_of_memory(error: Exception) -> bool:
    # compared by name: importing torch takes seconds
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
