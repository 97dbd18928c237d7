"""All errors that vtok raises on purpose, with their exit codes.

VtokError                  1   nothing could be done
├── UsageError             2   options that do not fit together
│   └── OptionError        2   one option with an unusable value (also a ValueError)
├── PartialFailure         3   some inputs failed, the others were written
├── CodeFileError          4   damaged or incompatible code file
├── CheckpointError        4   damaged or incompatible checkpoint
├── InputError             5   missing or unreadable input
│   └── VideoError         5   not a readable video
├── OutputError            1   an output that exists already or cannot be written
└── ShapeError             1   a tensor of the wrong shape or type (also a ValueError)

Messages name options by their Python field in backticks, such as `num_stages`; the command line
replaces each by its flag.
"""


class VtokError(Exception):
    """Base class of all errors that vtok raises on purpose; the message is one line."""

    exit_code = 1


class UsageError(VtokError):
    """Options that do not fit together."""

    exit_code = 2


class OptionError(UsageError, ValueError):
    """One option with an unusable value.

    Attributes:
        field: name of the option in Python, such as `start_seconds`.
        value: value that was given.
        expected: what would be valid, to follow the word "expected".
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field}={value}: expected {expected}")
        self.field, self.value, self.expected = field, value, expected


class PartialFailure(VtokError):
    """Some inputs failed while the others were written."""

    exit_code = 3


class CodeFileError(VtokError):
    """A code file that is damaged, truncated, or of another version or model."""

    exit_code = 4


class CheckpointError(VtokError):
    """A checkpoint that is damaged, unknown, or does not match its configuration."""

    exit_code = 4


class InputError(VtokError):
    """An input that is missing or cannot be read."""

    exit_code = 5


class VideoError(InputError):
    """A file that is not a readable video."""


class OutputError(VtokError):
    """An output that exists already or cannot be written."""


class ShapeError(VtokError, ValueError):
    """A tensor whose shape, type or range does not fit."""
