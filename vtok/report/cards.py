"""The shipped models by name, and what their cards say of their quality; needs no torch."""

from __future__ import annotations

import re

from vtok.checkpoint_info import WEIGHTS_FOLDER


def token_learners(model: str) -> list[str]:
    """The kinds of the token learners that are shipped for a shipped model."""
    found = (WEIGHTS_FOLDER / "tokens").glob(f"{model}-*.safetensors")
    return sorted(path.stem.removeprefix(f"{model}-") for path in found)


def card_quality(text: str) -> dict[int, float]:
    """Mean PSNR in dB by bits a position, from the table of a model card.

    Args:
        text: of the card, with a table whose heads are `clip`, `9 bits`, `18 bits` ... and which
            has a row `mean`; the first such table counts.

    Returns:
        By rising bits; nothing where there is no such table.
    """
    heads: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == "clip" and all(re.fullmatch(r"\d+ bits", cell) for cell in cells[1:]):
            heads = cells[1:]
        elif heads and cells[0] == "mean" and len(cells) == len(heads) + 1:
            return {int(h.split()[0]): float(c) for h, c in zip(heads, cells[1:], strict=True)}
    return {}


def read_card(name: str) -> str:
    """The text of a shipped model's card; empty if it has none."""
    path = WEIGHTS_FOLDER / f"{name}.md"
    return path.read_text() if path.exists() else ""
