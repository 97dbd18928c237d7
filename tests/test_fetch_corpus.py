"""scripts/fetch_corpus: package formats, limits, missing files, resumption."""

import importlib.machinery
import importlib.util
import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "fetch_corpus"
CONTENT = bytes(range(256)) * 5


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("fetch_corpus", str(SCRIPT))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("fetch_corpus", loader)
    )
    monkeypatch.setitem(sys.modules, "fetch_corpus", module)
    loader.exec_module(module)
    return module


def make_tar(*names: str, compression: str = "gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(CONTENT)
            archive.addfile(member, io.BytesIO(CONTENT))
    return buffer.getvalue()


def make_archive(path: Path, *names: str) -> Path:
    """Write a package with these files; its name sets the format."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            for name in names:
                wheel.writestr(name, CONTENT)
    elif path.suffix == ".deb":
        data = make_tar(*(f"./{name}" for name in names), compression="xz")
        parts = {"debian-binary": b"2.0\n", "control.tar.gz": b"odd", "data.tar.xz": data}
        packed = b"!<arch>\n"
        for name, part in parts.items():
            header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode()
            packed += header + part + b"\n" * (len(part) % 2)
        path.write_bytes(packed)
    else:
        path.write_bytes(make_tar(*names))
    return path


@pytest.mark.parametrize("name", ["a-1-py3-none-any.whl", "a-1.tgz", "a_1_all.deb"])
def test_package_formats(script: ModuleType, tmp_path: Path, name: str) -> None:
    archive = make_archive(tmp_path / name, "in/a.mp4", "in/b.mp4", "c.txt")
    found = dict(script.unpack(archive, {"in/a.mp4", "c.txt", "missing"}))
    assert found == {"in/a.mp4": CONTENT, "c.txt": CONTENT}
    for size in (0, 1, 9, 70, archive.stat().st_size // 2):
        archive.write_bytes(archive.read_bytes()[:size])
        with pytest.raises(script.Missing):
            list(script.unpack(archive, {"in/a.mp4"}))


def test_large_file_is_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "LARGEST", len(CONTENT) - 1)
    for name in ("a.whl", "a.tgz", "a.deb"):
        with pytest.raises(script.Missing, match="more than"):
            list(script.unpack(make_archive(tmp_path / name, "a.mp4"), {"a.mp4"}))


def test_missing_files_are_reported_and_fetched_next_time(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = script.Package("pip", "one==1", "one", "video", "in", ("a.mp4", "deep/b.mp4"))
    two = script.Package("apt", "two=2", "two", "photo", "usr", ("c.png",))
    monkeypatch.setattr(script, "PACKAGES", (one, two))
    fetched: list[str] = []

    def download(package: object, scratch: Path) -> Path:
        fetched.append(package.spec)
        if fetched == ["one==1", "two=2"]:
            raise script.Missing("apt-get failed: no such package")
        if package is two:
            return make_archive(scratch / "two.deb", "usr/c.png")
        return make_archive(scratch / "one.whl", "in/a.mp4", "in/deep/b.mp4")

    monkeypatch.setattr(script, "download", download)
    folder = tmp_path / "corpus"
    assert script.main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert "two=2: MISSING: apt-get failed: no such package" in said
    assert f"2 of 3 files in {folder}" in said
    assert script.main([str(folder)]) == 0
    assert fetched == ["one==1", "two=2", "two=2"]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"video/one__a.mp4", "video/one__b.mp4", "photo/two__c.png"}
    assert all((folder / name).read_bytes() == CONTENT for name in files)


def test_failing_client(script: ModuleType, tmp_path: Path) -> None:
    package = script.Package("none", "a", "a", "video", "in", ("a.mp4",))
    for command, message in (
        (("/missing/pip",), r"/missing/pip cannot be run \(No such file or directory\)"),
        (("sh", "-c", "echo one >&2; echo two >&2; exit 3"), "sh failed: two"),
        (("true",), "true failed: no output"),
    ):
        script.COMMANDS["none"] = command
        with pytest.raises(script.Missing, match=message):
            script.download(package, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif("VTOK_FETCH_CORPUS" not in os.environ, reason="set VTOK_FETCH_CORPUS to fetch")
def test_registries(script: ModuleType, tmp_path: Path) -> None:
    assert script.main([str(tmp_path)]) == 0
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 68
