"""Distributions, their metadata, and the release they belong to."""

import os
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import vtok

ROOT = Path(__file__).parent.parent
HOME = "https://github.com/vtok/vtok"
RELEASE = runpy.run_path(str(ROOT / "scripts" / "check_release.py"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and from it the wheel, as for a release."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


@pytest.mark.slow
def test_wheel_contains_only_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        assert "vtok = vtok.cli.app:main" in archive.read(entry_points).decode()
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "vtok").rglob("*.py")}
    data = {"vtok/py.typed", "vtok/weights/vtok-base.safetensors", "vtok/weights/vtok-base.md"}
    assert package | data <= set(names)
    assert any(name.endswith("/page.html") for name in names), "template of `vtok report`"
    assert all(name.startswith(("vtok/", "vtok-")) for name in names)


@pytest.mark.slow
def test_source_distribution_contains_tests_and_documents(dist: Path) -> None:
    (built,) = dist.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    documents = {path.name for path in ROOT.glob("*.md")} | {"LICENSE", "CITATION.cff"}
    assert documents | {"tests/conftest.py", "docs/format.md", "constraints.txt"} <= names
    assert not {name for name in names if name.startswith((".venv", "runs", "site"))}


@pytest.mark.slow
def test_metadata_states_home_license_and_pythons(metadata: Message) -> None:
    assert metadata["Version"] == vtok.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
    assert set(urls) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert all(url.startswith(HOME) for url in urls.values())
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])


@pytest.mark.slow
def test_installed_wheel_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    run(
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
        "--disable-pip-version-check", "--target", site, wheel, cwd=tmp_path,
    )  # fmt: skip
    code = "import vtok; print(vtok.__file__)"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site)).startswith(str(site))
    shown = run(site / "bin" / "vtok", "--version", cwd=tmp_path, PYTHONPATH=str(site))
    assert vtok.__version__ in shown
    shown = run(
        sys.executable, ROOT / "examples" / "demo.py", "--size", "90",
        cwd=tmp_path, PYTHONPATH=str(site), COLUMNS="120",
    )  # fmt: skip
    assert "121 frames of 160x90" in shown
    assert "PSNR" in shown
    picture = np.asarray(Image.open(tmp_path / "demo" / "bee.png"))
    column = (picture.shape[1] - 6) // 3
    top = picture[26 : 26 + 90]
    original, coarse, fine = (top[:, 6 + n * column : n * column + column] for n in range(3))
    errors = [np.square(original.astype(float) - other).mean() for other in (coarse, fine)]
    assert errors[1] < errors[0] < 3000  # both resemble the original, more bits more closely


def test_changelog_begins_with_this_version() -> None:
    assert RELEASE["released_versions"](CHANGELOG)[0] == vtok.__version__
    assert RELEASE["check"](f"v{vtok.__version__}", vtok.__version__, CHANGELOG) is None


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "error"),
    [
        ("v1.1.0", "1.1.0", "## Unreleased\n\n## 1.1.0\n\n## 1.0.0\n", None),
        ("v1.1.0", "1.1.0", "## 1.1.0 - 2030-01-31\n", None),
        ("1.1.0", "1.1.0", "## 1.1.0\n", "expected the tag v1.1.0"),
        ("v1.1.0", "1.0.0", "## 1.1.0\n", "expected the tag v1.0.0"),
        ("v1.1.0", "1.1.0", "## 1.1.0 - unreleased\n\n## 1.0.0\n", "is 1.0.0: expected 1.1.0"),
        ("v1.1.0", "1.1.0", "# Changelog\n", "is missing: expected 1.1.0"),
    ],
)
def test_release_check_compares_tag_version_and_changelog(
    tag: str, version: str, changelog: str, error: str | None
) -> None:
    found = RELEASE["check"](tag, version, changelog)
    assert found is None if error is None else error in found


def test_version_is_read_without_importing_the_package() -> None:
    assert RELEASE["package_version"]() == vtok.__version__


def test_workflows_test_the_supported_pythons() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert f'requires-python = ">={supported[0]}"' in project
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["check"]
    assert job["strategy"]["matrix"]["python"] == supported
    assert ".ci/run" in [step.get("run") for step in job["steps"]]


def test_project_files_are_valid_yaml() -> None:
    paths = [
        *ROOT.glob(".github/**/*.yml"),
        ROOT / ".pre-commit-config.yaml",
        ROOT / "CITATION.cff",
    ]
    assert len(paths) >= 6
    for path in paths:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == HOME
