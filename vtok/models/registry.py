"""Architectures that checkpoints may name; their modules are imported when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vtok.errors import UsageError

if TYPE_CHECKING:
    from vtok.nn.interface import Tokenizer

OWN = "vtok"
"""Architecture of the shipped models, which alone has learned tokens and training."""


@dataclass(frozen=True)
class Architecture:
    """Names of an architecture and of the classes that implement it.

    Attributes:
        name: Name in checkpoints, and in `vtok import NAME`.
        module: Module with the classes.
        config: Name of the configuration class, which has `from_dict` and `to_dict`.
        tokenizer: Name of the `Tokenizer` class.
    """

    name: str
    module: str
    config: str
    tokenizer: str

    def load(self, name: str) -> Any:
        """Import the module, and return a member such as `config` or `tokenizer`."""
        return getattr(import_module(self.module), name)

    def build(self, config: dict[str, Any]) -> Tokenizer:
        """Create a tokenizer with random weights from the JSON object of its configuration.

        Raises:
            UsageError: The configuration is invalid.
        """
        made: Tokenizer = self.load(self.tokenizer).from_config(
            self.load(self.config).from_dict(config)
        )
        return made


# a row of the names that `Architecture` holds, in its order
_ROWS = (
    (OWN, "vtok.nn.tokenizer", "TokenizerConfig", "VideoTokenizer"),
    ("cosmos", "vtok.models.cosmos", "CosmosConfig", "CosmosTokenizer"),
    ("vidtok", "vtok.models.vidtok", "VidTokConfig", "VidTokTokenizer"),
    ("open_magvit2", "vtok.models.open_magvit2", "OpenMagvit2Config", "OpenMagvit2Tokenizer"),
    ("emu3", "vtok.models.emu3", "Emu3Config", "Emu3Tokenizer"),
    ("taehv", "vtok.models.taehv", "TaehvConfig", "TaehvTokenizer"),
    ("diffusers", "vtok.models.diffusers_vae", "DiffusersConfig", "DiffusersTokenizer"),
)
ARCHITECTURES = {row[0]: Architecture(*row) for row in _ROWS}


def find_architecture(name: str) -> Architecture:
    """Return an architecture by its name.

    Raises:
        UsageError: The name is unknown.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UsageError(f"architecture {name[:40]!r}: this vtok knows {known}: update vtok")
    return ARCHITECTURES[name]
