"""Pages of made clips for the tests in a browser, and the keys that those press."""

from pathlib import Path

from commands import tiny_checkpoint
from exhibits import make_exhibit

from vtok.evaluation.report import build_page
from vtok.models.load import load

WIDTH, HEIGHT, FRAMES = 192, 128, 9
LEFT, RIGHT, SPACE, HOME, END = "\ue012", "\ue014", " ", "\ue011", "\ue010"
EVIL = (
    "</script><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\">clip.mp4"
)


def make_pages(folder: Path) -> Path:
    """A page of one clip, one of a picture, and one of two clips with codecs and a harmful name."""
    model = load(tiny_checkpoint(folder))
    one = make_exhibit(frames=FRAMES, size=(WIDTH, HEIGHT))
    photo = make_exhibit("photo.png", frames=1, size=(60, 40))
    evil = make_exhibit(EVIL, frames=6, pictured=4, size=(90, 160), codecs=("x264", "av1"))
    windows = make_exhibit(frames=FRAMES, size=(WIDTH, HEIGHT), window=2)
    pages = {"one": [one], "photo": [photo], "two": [evil, one], "windows": [windows]}
    for name, exhibits in pages.items():
        (folder / f"{name}.html").write_bytes(build_page(exhibits, model))
    return folder
