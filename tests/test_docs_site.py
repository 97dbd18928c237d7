"""The documentation site: a strict build, complete, and without external resources."""

import html
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import Browser

import vtok

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FETCHED = re.compile(r"""<(?:script|img|iframe|source|video|audio)\b[^>]*?\ssrc=["']?([^"'\s>]+)""")
LINKED = re.compile(r"""<link\b[^>]*?\shref=["']?([^"'\s>]+)""")
STYLED = re.compile(r"""(?:@import\s+|url\()\s*["']?([^"')]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site with `mkdocs build --strict`."""
    reason = "mkdocs is not installed: pip install -c constraints.txt '.[docs]'"
    pytest.importorskip("mkdocs", reason=reason)
    pytest.importorskip("material", reason=reason)
    pytest.importorskip("mkdocstrings", reason=reason)
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr  # broken link, page missing from nav, bad docstring
    return folder


@pytest.mark.slow
def test_every_page_is_built_and_fetches_nothing(site: Path) -> None:
    for page in DOCS.glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
    for page in site.glob("**/*.html"):
        text = page.read_text()
        addresses = [*FETCHED.findall(text), *LINKED.findall(text)]
        assert len(addresses) > 3
        for address in map(html.unescape, addresses):
            assert not re.match(r"(\w+:)?//", address), f"{page.name} fetches {address}"
    for sheet in site.glob("**/*.css"):
        for address in STYLED.findall(sheet.read_text()):
            assert not re.match(r"(https?:)?//", address), f"{sheet.name} fetches {address}"


@pytest.mark.slow
def test_api_page_documents_every_export(site: Path) -> None:
    text = (site / "api.html").read_text()
    for name in vtok.__all__:
        home = f"{getattr(vtok, name).__module__}.{name}"
        assert f'id="vtok.{name}"' in text or f'id="{home}"' in text, name
    for name in (
        "vtok.VideoTokenizer.encode",
        "vtok.TokenLearner.forward",
        "vtok.UsageError",
    ):
        assert f'id="{name}"' in text, name
    assert "num_output_tokens" in text


@pytest.mark.slow
def test_pages_fit_a_phone_and_search_works_from_files(site: Path, window: Browser) -> None:
    window.resize(390, 844, phone=True)
    window.driver.get("about:blank")
    window.take_complaints()
    for name in ("quickstart", "cli"):
        window.driver.get((site / f"{name}.html").as_uri())
        window.wait_for("return document.readyState === 'complete'")
        wide = window.run("return document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{name} is wider than a phone"
    window.resize(1200, 900)
    window.driver.get((site / "index.html").as_uri())
    window.find(".md-search__input").send_keys("diversity_gamma")
    found = window.wait_for(
        "return [...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
        ".filter(address => address.includes('api.html')).length"
    )
    assert found
    assert window.take_complaints() == []


def test_links_to_files_outside_the_site_become_plain_names(tmp_path: Path) -> None:
    rewrite = runpy.run_path(str(ROOT / "scripts" / "mkdocs_hooks.py"))["on_page_markdown"]
    (tmp_path / "docs").mkdir()
    (tmp_path / "code.py").touch()
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(tmp_path / "docs" / "page.md")))

    def shown(text: str) -> str:
        return rewrite(text, page=page, config=None, files=None)

    assert (
        shown("see [code.py](../code.py#L3), [more](other.md)") == "see `code.py`, [more](other.md)"
    )
    assert shown("[gone](../gone.py)") == "[gone](../gone.py)", "a strict build must report it"
