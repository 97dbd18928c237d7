"""docs/token_learner_vit.md matches the results file."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))

import token_learner_vit as experiment  # noqa: E402
import vit  # noqa: E402
from vit_results import Results, Run, markdown  # noqa: E402

from vtok.errors import InputError  # noqa: E402

PAGE = ROOT / "docs" / "token_learner_vit.md"


def test_page_has_the_table_of_the_results() -> None:
    assert markdown(Results(PAGE.with_suffix(".json"), list(vit.VARIANTS))) in PAGE.read_text()


def test_commands_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = PAGE.read_text().splitlines()
    commands = [line.partition("#")[0] for line in lines if line.startswith("python examples/")]
    assert len(commands) >= 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", command.split()[1:])
        experiment.parse()


def test_table_is_replaced(tmp_path: Path) -> None:
    results = Results(tmp_path / "none.json", list(vit.VARIANTS))
    page = tmp_path / "page.md"
    for ending in ("\n\nafter\n\nit\n", "\n"):
        results.runs = []
        page.write_text("before\n\n" + markdown(results) + ending)
        for seed in range(2):
            results.runs.append(Run("plain", seed, 3, 4, 1.0))
            experiment.write_page(page, results)
            assert page.read_text() == "before\n\n" + markdown(results) + ending
    page.write_text("nothing to replace\n")
    with pytest.raises(InputError, match="has no table"):
        experiment.write_page(page, results)
