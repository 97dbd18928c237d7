"""`vtok report` without a browser: what the page holds, how large it gets, what names can do."""

import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from commands import rows, tiny_checkpoint, vtok
from exhibits import BITS, SPACE, STAGES, make_exhibit
from PIL import Image
from videos import make_video

from vtok.errors import ShapeError
from vtok.evaluation.metrics import psnr
from vtok.evaluation.pictures import code_palette, heat_scale
from vtok.evaluation.report import SCRIPTS, asset, build_page, code_width, script_safe
from vtok.models.load import LoadedTokenizer, load
from vtok.video.images import MAX_SIDE, frame_to_webp, webp_to_frame

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{script}}.mp4"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    return load(tiny_checkpoint(tmp_path_factory.mktemp("model")))


class Page(HTMLParser):
    """The elements of a page and the text of its scripts by id, as a browser would split it."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, str] = {}
        self.block: str | None = None
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.block = dict(attrs).get("id") or "code" if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self.block = None

    def handle_data(self, data: str) -> None:
        if self.block is not None:
            self.blocks[self.block] = self.blocks.get(self.block, "") + data

    @property
    def facts(self) -> dict:
        return json.loads(self.blocks["facts"])

    def pictures(self, clip: int, strip: int) -> list[bytes]:
        """Read as the script reads: each picture's base64 starts where the last one's ends."""
        facts = self.facts["clips"][clip]["strips"][strip]
        text, found = self.blocks[f"pictures-{clip}-{facts['key']}"], []
        for size in facts["sizes"]:
            length = 4 * -(-size // 3)
            found.append(b64decode(text[:length], validate=True))
            text = text[length:]
            assert len(found[-1]) == size
        assert not text
        return found


def test_a_page_holds_every_picture_and_code(model: LoadedTokenizer) -> None:
    exhibits = [make_exhibit(codecs=("x264",)), make_exhibit("b.mp4", seed=1)]
    page = Page(build_page(exhibits, model))
    for number, exhibit in enumerate(exhibits):
        for place, strip in enumerate(exhibit.strips):
            assert page.pictures(number, place) == strip.pictures
        clip = page.facts["clips"][number]
        assert clip["layout"]["width"] == 1
        codes = np.frombuffer(b64decode(page.blocks[f"codes-{number}"]), np.uint8)
        shape = (STAGES, clip["layout"]["steps"], *clip["layout"]["grid"])
        assert (codes.reshape(shape) == exhibit.codes).all()
    assert [strip["key"] for strip in page.facts["clips"][0]["strips"]][::3] == [
        "original", "vtok-18", "x264-18",
    ]  # fmt: skip
    assert {delta["codec"] for delta in page.facts["clips"][0]["deltas"]} == {"x264"}
    assert len(page.facts["mean"]) == 3  # the codec's are of one clip only


def test_a_page_asks_for_nothing_from_anywhere(model: LoadedTokenizer) -> None:
    page = Page(build_page([make_exhibit()], model))
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    (policy,) = (a["content"] for _, a in page.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "@import" not in asset("page.css")
    assert "url(" not in asset("page.css")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_makes_no_markup_of_words(name: str) -> None:
    script = asset(f"{name}.js")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|import\(", script)
    assert "</" not in script


def test_names_are_words_and_nothing_else(model: LoadedTokenizer) -> None:
    harmless = Page(build_page([make_exhibit()], model))
    page = Page(build_page([make_exhibit(f"folder/{EVIL}")], model, title=EVIL))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert page.blocks["code"] == harmless.blocks["code"]
    assert page.facts["title"] == EVIL
    assert page.facts["clips"][0]["input"].endswith(EVIL)


def test_names_that_are_no_text_are_written_all_the_same(model: LoadedTokenizer) -> None:
    name = b"a\xff\n\x1b[31m\xe2\x80\xae.mp4".decode("utf-8", "surrogateescape")
    page = Page(build_page([make_exhibit(name)], model))
    assert page.facts["clips"][0]["name"].isprintable()
    assert page.facts["clips"][0]["name"].endswith(".mp4")


def test_json_for_a_script_is_json_still() -> None:
    value = {"a": [1, 2.5, None], "</script>": "<!-- & >\u2028"}
    text = script_safe(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028") & set(text)
    with pytest.raises(ValueError, match="JSON"):
        script_safe(float("nan"))


def channels(colours: list[str]) -> list[tuple[int, ...]]:
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
    return [tuple(bytes.fromhex(colour[1:])) for colour in colours]


def test_the_error_scale_gets_lighter_step_by_step() -> None:
    scale = channels(heat_scale(64))
    assert len(scale) == 64
    light = [0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2 for r, g, b in scale]
    assert all(b > a for a, b in pairwise(light))
    assert max(scale[0]) < 50
    assert min(scale[-1][:2]) > 220


def test_codes_get_different_colours() -> None:
    palette = channels(code_palette())
    assert len(set(palette)) == len(palette) == 256
    for a, b in pairwise(palette):
        assert sum(abs(x - y) for x, y in zip(a, b, strict=True)) > 40


@pytest.mark.parametrize(
    ("size", "width"), [(2, 1), (256, 1), (512, 2), (1 << 16, 2), (1 << 18, 4), (1 << 32, 4)]
)
def test_codes_take_no_more_bytes_than_they_need(size: int, width: int) -> None:
    assert code_width(size) == width


def test_pictures_are_close_to_their_frames() -> None:
    exhibit = make_exhibit(size=(97, 63))
    for strip, point in zip(exhibit.strips[1:], exhibit.result.points, strict=True):
        lost = point.quality["psnr"]
        assert lost is not None
        assert np.mean(strip.fidelity) > lost + 6  # they do not hide what was lost
    frame = webp_to_frame(exhibit.strips[0].pictures[0])
    assert frame.shape == (63, 97, 3)
    gray = np.full((1, 40, 50, 3), 200, np.uint8)
    assert psnr(webp_to_frame(frame_to_webp(gray[0]))[None], gray) > 45
    with pytest.raises(ShapeError, match="up to 16383"):
        frame_to_webp(np.zeros((1, MAX_SIDE + 1, 3), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two videos, a file that is none, a picture and a checkpoint."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", 9)
    make_video(folder / "b.mp4", 5, fps="30000/1001")
    (folder / "broken.mp4").write_text("hello\n")
    Image.new("RGB", (40, 30), (200, 100, 50)).save(folder / "photo.png")
    tiny_checkpoint(folder)
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def report(*arguments: str | Path):
    return vtok("report", *arguments, "--model", "tiny.safetensors", "--metrics", "psnr")


def test_one_video(tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    result = report("a.mp4", "-o", output, "--bits", "6,18", "--json")
    assert result.exit_code == 0, result.stderr
    clip, page = rows(result)
    assert (clip["input"], clip["frames"], clip["pictured"]) == ("a.mp4", 9, 9)
    assert page["bytes"] == output.stat().st_size
    facts = Page(output.read_bytes()).facts
    (shown,) = facts["clips"]
    assert (shown["width"], shown["height"]) == (64, 48)  # smaller than usual: left as it is
    assert [rate["bits"] for rate in shown["rates"]] == [6, 18]
    for strip, rate in zip(shown["strips"][1:], shown["rates"], strict=True):
        assert np.mean(strip["psnr"]) == pytest.approx(rate["psnr"], abs=0.01)
    assert shown["strips"][0]["fidelity"] > 30
    stages = np.array([chunk["stages"] for chunk in shown["chunks"]]).sum()
    assert 0 < stages < shown["rates"][-1]["bytes"]  # the rest is header and index
    assert sum(chunk["frames"] for chunk in shown["chunks"]) == 9
    assert shown["layout"]["grid"] == [48 // SPACE, 64 // SPACE]
    assert shown["layout"]["bits_per_code"] == BITS


def test_pictures_stop_where_the_page_is_full(tmp_path: Path) -> None:
    result = report("a.mp4", "-o", tmp_path / "page.html", "--megabytes", "0.1", "--bits", "6")
    assert result.exit_code == 0, result.stderr
    assert "1 of 9 frames in pictures" in result.stderr
    page = Page((tmp_path / "page.html").read_bytes())
    (shown,) = page.facts["clips"]
    assert (shown["pictured"], shown["layout"]["steps"]) == (1, 1)
    assert len(shown["strips"][1]["psnr"]) == shown["frames"] == 9  # measured all the same


def test_a_picture_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    result = report("photo.png", "-o", tmp_path / "page.html", "--bits", "6", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    (shown,) = Page((tmp_path / "page.html").read_bytes()).facts["clips"]
    assert (shown["frames"], shown["pictured"], len(shown["chunks"])) == (1, 1, 1)


def test_a_bad_clip_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    inputs = ("a.mp4", "broken.mp4", "b.mp4")
    result = report(*inputs, "-o", output, "--bits", "6", "--frames", "3", "--json")
    assert result.exit_code == 3
    assert "broken.mp4" in result.stderr
    kinds = [(row.get("kind"), row["status"]) for row in rows(result)]
    assert kinds == [("clip", "ok"), (None, "failed"), ("clip", "ok"), ("page", "ok")]
    page = Page(output.read_bytes())
    assert [clip["name"] for clip in page.facts["clips"]] == ["a.mp4", "b.mp4"]
    assert [clip["frames"] for clip in page.facts["clips"]] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["broken.mp4"], 5, "broken.mp4"),
        (["missing.mp4"], 5, "no such file"),
        (["a.mp4", "-o", "-"], 2, "give the name of a file"),
        (["a.mp4", "--megabytes", "0"], 2, "expected 0.1 to 200"),
        (["a.mp4", "--bits", "7"], 2, "--bits 7"),
        (["a.mp4", "--with", "h261"], 2, "--with h261"),
        (["a.mp4", "--frames", "0"], 2, "--frames 0"),
        (["a.mp4", "-o", "a.mp4"], 1, "exists already"),
        (["a.mp4", "-o", "nowhere/page.html"], 1, "does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], code: int, words: str) -> None:
    result = report(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("report.html").exists()
