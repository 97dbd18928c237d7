"""Imports point down, files and functions stay short, the public API is complete."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vtok
import vtok.errors

PACKAGE = Path(vtok.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = {
    "errors": 0,
    "_files": 1,
    "_sound": 2,
    "_times": 1,
    "nn": 3,
    "video": 3,
    "codefile": 3,
    "models": 4,
    "pipeline": 5,
    "evaluation": 6,
    "tokens": 7,
    "training": 8,
    "dataset": 8,
    "cli": 9,
    "__main__": 10,
}
# imports inside functions that point up on purpose
UPWARD = {
    ("nn/tokenizer.py", "models"),  # VideoTokenizer.from_pretrained needs files
}
# packages that may import a third-party library directly
OWNERS = {
    "av": {"video"},
    "imageio": {"video"},
    "imageio_ffmpeg": {"video"},
    "PIL": {"video", "evaluation"},
    "typer": {"cli"},
    "rich": {"cli"},
    "safetensors": {"models", "pipeline", "tokens", "training"},
    "accelerate": {"training"},
    "tensorboard": {"training"},
    "matplotlib": {"evaluation"},
    "torch": {"nn", "models", "pipeline", "evaluation", "tokens", "training"},
    "einops": {"nn", "models", "pipeline", "tokens"},
}
READING_DISTANCE = {"pipeline/encode.py": 33, "pipeline/decode.py": 34}
"""Most files that must be read to follow a file and all that it imports, without __init__.py."""


def part(path: Path) -> str:
    """First folder or module below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Dotted names of everything that a file imports."""
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
        return  # exports lazily
    for name in imports(path):
        if not name.startswith("vtok."):
            continue
        target = name.split(".")[1]
        if target in LEVELS and (where, target) not in UPWARD:
            assert LEVELS[target] <= LEVELS[part(path)], (
                f"{where} imports {name}, which is above it"
            )
            if LEVELS[target] == LEVELS[part(path)]:
                assert target == part(path), f"{where} imports {name}, which is on the same level"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_third_party_imports_are_confined(path: Path) -> None:
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        if owners is not None:
            assert part(path) in owners, f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    assert ast.get_docstring(ast.parse(text)), "every file has a docstring"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = (node.end_lineno or 0) - first.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_exported_names_are_sorted_importable_and_documented() -> None:
    assert vtok.__all__ == sorted(vtok.__all__)
    for name in vtok.__all__:
        member = getattr(vtok, name)
        assert member.__name__ == name
        assert inspect.getdoc(member), name
    with pytest.raises(AttributeError, match="no attribute 'spam'"):
        vtok.spam  # noqa: B018


def test_every_public_name_is_exported() -> None:
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vtok."):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names.add(node.name)
    assert names == set(vtok.__all__), "imports for type checkers and __all__ differ"
    errors = {name for name, kind in vars(vtok.errors).items() if isinstance(kind, type)}
    assert errors <= names


def test_option_and_result_classes_of_public_functions_are_exported() -> None:
    for name in vtok.__all__:
        member = getattr(vtok, name)
        if inspect.isfunction(member):
            for hint in inspect.get_annotations(member).values():
                for word in re.findall(r"\w*(?:Options|Result|Config|Totals)\b", str(hint)):
                    assert word in vtok.__all__, f"{name} mentions {word}"


def test_type_information_is_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_import_does_not_load_torch() -> None:
    code = "import sys, vtok, vtok.cli.app; print('torch' in sys.modules, 'av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("start", READING_DISTANCE)
def test_reading_distance(start: str) -> None:
    seen: set[Path] = set()
    todo = [PACKAGE / start]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in runtime_imports(path):
            base = PACKAGE.joinpath(*name.split(".")[1:])
            todo += [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()]
    found = sorted(str(p.relative_to(PACKAGE)) for p in seen if p.name != "__init__.py")
    assert len(found) <= READING_DISTANCE[start], f"{len(found)} files: {found}"


def runtime_imports(path: Path) -> list[str]:
    """Names of the package's modules that a file imports when it runs, not for types only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    names = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "vtok"]
