"""The rooms: imports point down, files and functions stay short, what is exported exists."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vtok

PACKAGE = Path(vtok.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = {
    "errors": 0,
    "_files": 1,
    "nn": 2,
    "video": 2,
    "codefile": 2,
    "models": 3,
    "pipeline": 4,
    "evaluation": 5,
    "tokens": 6,
    "training": 7,
    "dataset": 7,
    "cli": 8,
    "__main__": 9,
}
# imports inside functions that point up on purpose
UPWARD = {
    ("nn/tokenizer.py", "models"),  # VideoTokenizer.from_pretrained needs files
    ("pipeline/decode.py", "tokens"),
    ("pipeline/inspect.py", "tokens"),
    ("pipeline/psnr.py", "evaluation"),
    ("pipeline/up_to_date.py", "tokens"),
    ("pipeline/verify.py", "tokens"),
}
# packages that may import a third-party library directly; all others go through them
OWNERS = {
    "decord": {"video"},
    "imageio": {"video"},
    "imageio_ffmpeg": {"video"},
    "PIL": {"video", "evaluation"},
    "typer": {"cli"},
    "rich": {"cli"},
    "safetensors": {"models", "pipeline", "tokens", "training"},
    "accelerate": {"training"},
    "tensorboard": {"training"},
    "matplotlib": {"evaluation", "training"},
    "torch": {"nn", "models", "pipeline", "tokens", "training"},
    "einops": {"nn", "pipeline", "tokens"},
}


def room(path: Path) -> str:
    """The first folder or module below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Dotted names of all modules that a file imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    where = str(path.relative_to(PACKAGE))
    if where == "__init__.py":
        return  # it names what is exported, and imports it when asked
    for name in imports(path):
        if not name.startswith("vtok."):
            continue
        target = name.split(".")[1]
        if target in LEVELS and (where, target) not in UPWARD:
            assert LEVELS[target] <= LEVELS[room(path)], (
                f"{where} imports {name}, which is above it"
            )
            if LEVELS[target] == LEVELS[room(path)]:
                assert target == room(path), f"{where} imports {name} beside it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_have_owners(path: Path) -> None:
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        if owners is not None:
            assert room(path) in owners, f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    assert ast.get_docstring(ast.parse(text)), "a file says in one line what it is"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = (node.end_lineno or 0) - first.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_exports_exist() -> None:
    assert vtok.__all__ == sorted(vtok.__all__)
    for name in vtok.__all__:
        assert getattr(vtok, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'spam'"):
        vtok.spam  # noqa: B018


def test_import_is_light() -> None:
    code = "import sys, vtok, vtok.cli.app; print('torch' in sys.modules, 'decord' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
