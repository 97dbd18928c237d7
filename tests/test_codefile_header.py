"""Headers: canonical JSON, and checks of every field."""

import copy
import dataclasses
import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtok.codefile.header import (
    CodeFormat,
    Header,
    ModelIdentity,
    SourceVideo,
    Transform,
    dump_json,
    load_json,
    source_name,
)
from vtok.errors import CodeFileError

HEADER = Header(
    format=CodeFormat(512, 1, 4, 4, 8, (5, 8), 4, None),
    model=ModelIdentity("vtok-base", "a" * 64, "b" * 64, "float32", "cpu"),
    source=SourceVideo(1920, 1080, Fraction(30000, 1001)),
    transform=Transform(64, 36, Fraction(15)),
    writer="vtok 1.0.0",
    metadata={"caption": "bees \U0001f41d\nand more"},
)
PLAIN = json.loads(HEADER.to_json())


def with_field(path: str, value: object) -> bytes:
    """Header as JSON with one field replaced, or removed if the value is `...`."""
    plain = copy.deepcopy(PLAIN)
    *outer, last = path.split(".")
    inner = plain
    for key in outer:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def test_json_is_canonical() -> None:
    text = HEADER.to_json().decode("ascii")
    assert text == json.dumps(PLAIN, sort_keys=True, separators=(",", ":"))
    assert '"fps":[30000,1001]' in text
    assert '"caption":"bees \\ud83d\\udc1d\\nand more"' in text
    assert "." not in text.replace("vtok 1.0.0", "")  # no floats


def test_round_trip() -> None:
    assert Header.from_json(HEADER.to_json()) == HEADER


def test_bytes_do_not_depend_on_the_order_of_metadata() -> None:
    first = dataclasses.replace(HEADER, metadata={"a": "1", "b": "2"})
    second = dataclasses.replace(HEADER, metadata={"b": "2", "a": "1"})
    assert first.to_json() == second.to_json()


@pytest.mark.parametrize("bits", range(1, 33))
def test_bits_per_code(bits: int) -> None:
    assert CodeFormat(2**bits, 1, 1, 4, 8, (5, 8), 4, 0).bits_per_code == bits


WRONG: list[tuple[str, Any, str]] = [
    ("format.codebook_size", 500, "format.codebook_size is 500, it must be a power of two"),
    ("format.codebook_size", 1, r"an integer 2\.\.4294967296"),
    ("format.codebook_size", 2**33, r"an integer 2\.\.4294967296"),
    ("format.codebook_size", True, "format.codebook_size is True"),
    ("format.codebook_size", "512", "format.codebook_size is '512'"),
    ("format.codebook_size", ..., "format has no codebook_size"),
    ("format.num_stages", 0, "format.num_stages"),
    ("format.num_codebooks", 256, "format.num_codebooks"),
    ("format.temporal_compression", 1025, "format.temporal_compression"),
    ("format.spatial_compression", 0, "format.spatial_compression"),
    ("format.grid", [5], "format.grid"),
    ("format.grid", [5, 9], r"format.grid is \(5, 9\), but 64x36 pixels at 8"),
    ("format.grid", "58", "format.grid"),
    ("format.chunk_steps", 65537, "format.chunk_steps"),
    ("format.decoder_lookback", -1, "format.decoder_lookback"),
    ("format.extra", 1, "format has unknown keys"),
    ("model", [], "model is"),
    ("model.name", "", "model.name"),
    ("model.weights_sha256", "B" * 64, "model.weights_sha256"),
    ("model.config_sha256", "b" * 63, "model.config_sha256"),
    ("model.dtype", None, "model.dtype"),
    ("model.device", "x" * 256, "model.device"),
    ("source.width", 0, "source.width"),
    ("source.height", 2**21, "source.height"),
    ("source.fps", [0, 1], "source.fps is .*above 0"),
    ("source.fps", [60, 2], "source.fps is .*lowest terms"),
    ("source.fps", [30, 0], "source.fps"),
    ("source.fps", [True, 1], "source.fps"),
    ("source.fps", [-30, 1], "source.fps"),
    ("source.fps", 30, "source.fps"),
    ("source.num_frames", -1, "source.num_frames"),
    ("source.rotation", 45, "source.rotation is 45, it must be 0, 90, 180 or 270"),
    ("source.variable_frame_rate", 1, "source.variable_frame_rate"),
    ("source.name", "/home/someone/clip.mp4", "source.name .* without folder"),
    ("source.name", "..", "source.name"),
    ("source.name", "C:\\clip.mp4", "source.name"),
    ("source.name", "a\x1b[2Jb", "source.name .* control characters"),
    ("source.name", "\ud800", "source.name"),
    ("transform.width", 65, "format.grid"),
    ("transform.fps", None, "transform.fps"),
    ("transform.fps", [0, 1], "transform.fps is .*above 0"),
    ("transform.start", [-1, 2], "transform.start"),
    ("transform.duration", [1, 2, 3], "transform.duration"),
    ("transform.colour", "", "transform.colour"),
    ("writer", 1, "writer"),
    ("metadata", [], "metadata"),
    ("metadata", {"": "x"}, "metadata key"),
    ("metadata", {"k": 1}, "metadata.k"),
    ("metadata", {"k": "\udc80"}, "metadata.k"),
    ("extra", {}, r"header has unknown keys: \['extra'\]"),
    ("source", ..., "header has no source"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_wrong_field_is_named(path: str, value: object, message: str) -> None:
    with pytest.raises(CodeFileError, match=message):
        Header.from_json(with_field(path, value))


def test_constructors_refuse_wrong_fields() -> None:
    with pytest.raises(CodeFileError, match=r"format\.num_stages is 0"):
        dataclasses.replace(HEADER.format, num_stages=0)
    with pytest.raises(CodeFileError, match=r"source\.fps is 29\.97, it must be a Fraction"):
        SourceVideo(64, 36, 29.97)  # type: ignore[arg-type]
    with pytest.raises(CodeFileError, match=r"a chunk would hold \d+ codes"):
        CodeFormat(512, 255, 255, 4, 8, (1000, 1000), 65536, None)


@pytest.mark.parametrize("path", ["extra", "format.extra", "model.extra", "source.extra"])
def test_unknown_keys_of_a_newer_minor_version_are_ignored(path: str) -> None:
    assert Header.from_json(with_field(path, [1, {"new": None}]), newer=True) == HEADER


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        HEADER.to_json() + b"\n",
        HEADER.to_json().replace(b":", b": ", 1),
        HEADER.to_json().replace(b'"num_stages":4', b'"num_stages":4.0'),
        HEADER.to_json().replace(b'"num_stages":4', b'"num_stages":NaN'),
        HEADER.to_json().replace(b'"num_stages":4', b'"num_stages":4,"num_stages":4'),
        HEADER.to_json().replace(b'"num_stages":4', b'"num_stages":' + b"9" * 10**6),
        HEADER.to_json().replace(b'"num_stages":4', b'"num_stages":-0'),
        b"[" * 10**6,
        b"[" * 500 + b"]" * 500,
    ],
)
def test_json_in_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(CodeFileError, match="header"):
        Header.from_json(data)


def test_long_headers_are_refused() -> None:
    header = dataclasses.replace(HEADER, metadata={"text": "x" * 2**20})
    with pytest.raises(CodeFileError, match="the limit is 1048576: shorten metadata"):
        header.to_json()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
PATHS = [
    *PLAIN,
    *(f"{key}.{name}" for key, inner in PLAIN.items() if isinstance(inner, dict) for name in inner),
]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PATHS), JSON)
def test_any_field_with_any_value_is_read_or_refused(path: str, value: object) -> None:
    data, message = with_field(path, value), ""
    try:
        assert Header.from_json(data).to_json() == data
    except CodeFileError as error:
        message = str(error)
    assert "\n" not in message  # one line for a person
    assert len(message) < 400


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/videos/a b.mp4", "a b.mp4"),
        ("C:\\videos\\bee.mp4", "bee.mp4"),
        ("-", "-"),
        ("folder/", "_"),
        ("..", "_"),
        ("line\nbreak\udc80.mp4", "line_break_.mp4"),
        ("x" * 300 + ".mp4", "x" * 251 + ".mp4"),
    ],
)
def test_source_name(path: str, name: str) -> None:
    assert source_name(path) == name
    SourceVideo(64, 36, Fraction(30), name=source_name(path))


def test_canonical_json_refuses_integers_above_53_bits() -> None:
    assert load_json(dump_json([2**53 - 1])) == [2**53 - 1]
    with pytest.raises(ValueError, match="not an integer of 53 bits"):
        load_json(b"[9007199254740992]")
