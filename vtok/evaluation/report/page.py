"""`build_page`: exhibits as one self-contained HTML file.

The page consists of a template, a style sheet, a script, one JSON object of figures, and base64
blocks of pictures and codes. Its content security policy allows only the embedded style and script,
by SHA-256, and no connections, so a file name can neither run as code nor load anything.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import vtok
from vtok.evaluation.metrics import IDENTICAL_DB
from vtok.evaluation.pictures import code_palette, heat_scale
from vtok.evaluation.quality import METRICS
from vtok.evaluation.report.exhibit import ORIGINAL, Exhibit, Strip, code_width
from vtok.evaluation.results import mean_points
from vtok.models.load import LoadedTokenizer
from vtok.video.images import QUALITY

SCRIPTS = ("data", "pictures", "panes", "stage", "plots", "tables", "main")
"""Script files in order of concatenation; they share one scope."""


def build_page(
    exhibits: Sequence[Exhibit], model: LoadedTokenizer, title: str | None = None
) -> bytes:
    """Build the page as UTF-8.

    Args:
        exhibits: one or more clips.
        model: the model that coded them.
        title: title of the page; the clip's name or the number of clips if None.
    """
    style, script = asset("page.css"), _script()
    if title is None:
        names = [display_name(exhibit) for exhibit in exhibits]
        title = names[0] if len(names) == 1 else f"{len(names)} clips"
    fields = {
        "title": html.escape(printable(title)),
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "facts": script_safe(facts(exhibits, model, title)),
        "blocks": "\n".join(_blocks(exhibits)),
    }
    # one substitution, so that inserted text is not searched for more fields
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], asset("page.html"))
    return page.encode()


def facts(exhibits: Sequence[Exhibit], model: LoadedTokenizer, title: str) -> dict[str, Any]:
    """All data of the page but pictures and codes, as plain JSON types."""
    quantizer = model.tokenizer.quantizer
    return {
        "title": printable(title),
        "version": vtok.__version__,
        "model": {
            "name": printable(model.info.name),
            "weights_sha256": model.info.weights_sha256,
            "computed": f"{model.dtype_name} on {model.device.type}",
            "num_stages": quantizer.num_stages,
            "bits_per_stage": quantizer.bits_per_stage,
        },
        "webp_quality": QUALITY,
        "identical_db": IDENTICAL_DB,
        "metrics": {
            name: {
                "label": metric.label,
                "digits": metric.digits,
                "rises": metric.rises,
                "meaning": metric.meaning,
            }
            for name, metric in METRICS.items()
        },
        "heat": list(map(_hex, heat_scale())),
        "palette": list(map(_hex, code_palette())),
        "clips": [_clip(exhibit) for exhibit in exhibits],
        "mean": [point.to_json() for point in mean_points([x.result for x in exhibits])],
    }


def display_name(exhibit: Exhibit) -> str:
    """Name of a clip on the page: its printable file name."""
    return printable(Path(exhibit.result.name).name)


def printable(text: str) -> str:
    """Replace what is not printable or not valid UTF-8 in a file name."""
    shown = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)


def script_safe(value: Any) -> str:
    """JSON without characters that could end its `<script>` element or start markup."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str) -> str:
    """Text of a file in assets/."""
    return (files("vtok.evaluation.report") / "assets" / name).read_text("utf-8")


def _script() -> str:
    parts = "\n".join(asset(f"{name}.js") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _policy(style: str, script: str) -> str:
    rules = {
        "default-src": "'none'",
        "img-src": "data:",  # the empty favicon
        "style-src": _digest(style),
        "script-src": _digest(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _clip(exhibit: Exhibit) -> dict[str, Any]:
    result, layout = exhibit.result, exhibit.header.format
    info = exhibit.header.source
    return {
        **result.to_json(),
        "input": printable(result.name),
        "name": display_name(exhibit),
        "rate": float(result.fps),
        "source": [info.width, info.height],
        "pictured": exhibit.pictured,
        "strips": [_strip(strip) for strip in exhibit.strips],
        "chunks": [{"frames": chunk.frames, "stages": chunk.stages} for chunk in exhibit.chunks],
        "deltas": [delta.to_json() for delta in exhibit.deltas],
        "layout": {
            "grid": list(layout.grid),
            "steps": exhibit.codes.shape[1],
            "temporal": layout.temporal_compression,
            "spatial": layout.spatial_compression,
            "codebook_size": layout.codebook_size,
            "num_codebooks": layout.num_codebooks,
            "bits_per_code": layout.bits_per_code,
            "width": code_width(layout.codebook_size),
        },
    }


def _strip(strip: Strip) -> dict[str, Any]:
    fidelity = sum(strip.fidelity) / max(1, len(strip.fidelity))
    return {
        "key": strip.key,
        "coder": strip.coder,
        "bits": strip.bits,
        "sizes": [len(picture) for picture in strip.pictures],
        "psnr": [round(value, 3) for value in strip.psnr],
        "fidelity": round(fidelity, 2),
        "original": strip.coder == ORIGINAL,
    }


def _blocks(exhibits: Sequence[Exhibit]) -> Iterator[str]:
    """Data blocks; each picture is encoded separately, so that it can be decoded separately."""
    for number, exhibit in enumerate(exhibits):
        for strip in exhibit.strips:
            text = "".join(b64encode(picture).decode() for picture in strip.pictures)
            yield _block(f"pictures-{number}-{strip.key}", text)
        width = code_width(exhibit.header.format.codebook_size)
        data = exhibit.codes.astype(f"<u{width}").tobytes()
        yield _block(f"codes-{number}", b64encode(data).decode())


def _block(name: str, text: str) -> str:
    return f'<script type="application/octet-stream" id="{name}">{text}</script>'
