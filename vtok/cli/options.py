"""Options that several commands share: names, help texts, and groups of them as dataclasses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from vtok.cli import completion
from vtok.errors import OptionError

if TYPE_CHECKING:
    from vtok.models.load import LoadedTokenizer, ModelCache


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each dataclass parameter of a command by its fields, which Typer can parse.

    Defaults are those of the dataclass, or of the instance that is the parameter's default.
    """
    hints = get_type_hints(command, include_extras=True)
    flat: dict[str, Parameter] = {}
    groups: dict[str, tuple[Any, list[str]]] = {}
    for name, parameter in signature(command).parameters.items():
        kind: Callable[..., Any] = hints[name]
        if not is_dataclass(kind):
            flat[name] = parameter.replace(annotation=kind)
            continue
        usual = kind() if parameter.default is Parameter.empty else parameter.default
        groups[name] = (kind, [field.name for field in fields(kind)])
        for field, hint in get_type_hints(kind, include_extras=True).items():
            default = getattr(usual, field)
            flat[field] = Parameter(field, Parameter.KEYWORD_ONLY, default=default, annotation=hint)

    @wraps(command)
    def run(**values: Any) -> None:
        for name, (kind, names) in groups.items():
            values[name] = kind(**{field: values.pop(field) for field in names})
        command(**values)

    run.__signature__ = Signature(list(flat.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in flat.items()}
    return run


def argument(metavar: str, help: str, complete: completion.Complete | None = None) -> Any:
    """Declare a positional argument."""
    return typer.Argument(metavar=metavar, show_default=False, help=help, autocompletion=complete)


def option(
    names: str, metavar: str | None, help: str, complete: completion.Complete | None = None
) -> Any:
    """Declare an option by its names, separated by spaces; a flag has no metavar."""
    return typer.Option(*names.split(), metavar=metavar, help=help, autocompletion=complete)


DEBUG = "vtok.debug"
"""Key in the context's `meta` under which `--debug` is kept."""


def _keep_debug(context: typer.Context, asked: bool) -> bool:
    if asked:
        context.meta[DEBUG] = True
    return asked


Debug = Annotated[
    bool, typer.Option("--debug", callback=_keep_debug, help="Show the traceback of an error.")
]
"""Takes effect through its callback; commands do not read it."""
CodeFiles = Annotated[
    list[str],
    argument("INPUT", "Files, folders, quoted globs, or - for standard input.", completion.codes),
]
VideosOrLists = Annotated[
    list[str] | None,
    argument("INPUT", "Files, folders, quoted globs, or - for standard input.", completion.videos),
]
Videos = Annotated[
    list[str], argument("VIDEO", "Files, folders or quoted globs.", completion.videos)
]
TrainingData = Annotated[
    list[str],
    argument(
        "DATA",
        "Videos and photos: files, folders, quoted globs, tar shards.",
        completion.training_data,
    ),
]
FilesFrom = Annotated[
    list[str] | None,
    option("--files-from", "LIST", "File of paths, one per line; - for standard input."),
]
Null = Annotated[bool, option("-0 --null", None, "Paths in --files-from end in NUL bytes.")]
Output = Annotated[
    str | None,
    option("--output -o", "PATH", "File, or folder for several inputs; - for standard output."),
]
Stages = Annotated[
    int | None, option("--stages", "N", "Use the first N quantizer stages. [default: all]")
]
Bits = Annotated[
    int | None,
    option("--bits", "N", "Instead of --stages: as many stages as fit in N bits per position."),
]
MinPsnr = Annotated[
    float | None,
    option(
        "--min-psnr",
        "DB",
        "Use the fewest stages per chunk that reach this PSNR. Slower: decodes each chunk.",
    ),
]
MaxBpp = Annotated[
    float | None,
    option("--max-bpp", "X", "Use the most stages per chunk within X bits per pixel."),
]
Fast = Annotated[
    bool,
    option(
        "--fast",
        None,
        "Leave out the second pass of the encoder, of models that have one. vtok-base then encodes "
        "more than twice as fast, with 0.7 dB less at 72 bits.",
    ),
]
Effort = Annotated[
    int,
    option(
        "--effort",
        "N",
        "Gradient steps through the decoder that improve the codes, 0 to 1000. With 8, "
        "encoding takes 10 to 20 times as long.",
    ),
]
Hysteresis = Annotated[
    float,
    option(
        "--hysteresis",
        "D",
        "How far a latent passes the border of its cell before its code changes, 0 to 1. With 0.2, "
        "files are 6 to 10 % smaller and flicker less, for 0.1 dB.",
    ),
]
Compress = Annotated[
    bool, option("--compress/--no-compress", None, "Entropy-code the codes: half the bytes.")
]
LatentType = Annotated[
    str,
    option("--latents", "TYPE", "Type of latents, of models without codes: float16 or float32."),
]
TokenLearner = Annotated[
    str | None,
    option(
        "--token-learner",
        "NAME",
        "v10, v11, grouped, or a file from `vtok tokens train`. [default: v11]",
        completion.learners,
    ),
]
Size = Annotated[
    str | None,
    option("--size", "SIZE", "Short side (256) or WIDTHxHEIGHT. [default: source size]"),
]
Rate = Annotated[
    str | None,
    option("--fps", "RATE", "Frame rate, such as 10 or 30000/1001. [default: source rate]"),
]
ArraySize = Annotated[
    str | None,
    option("--size", "WxH", "Size of an array of codes. [default: as stated, or the whole grid]"),
]
ArrayRate = Annotated[
    str | None,
    option("--fps", "RATE", "Frame rate of an array of codes. [default: as stated, or 25]"),
]
ItemId = Annotated[
    str | None, option("--id", "ID", "Item of a shard (memmap, tar, parquet) by its id.")
]
ItemIndex = Annotated[
    int | None, option("--index", "N", "Instead of --id: number of the item, from 0.")
]
DepthRange = Annotated[
    str | None,
    option(
        "--depth-range",
        "LO,HI",
        "Values that become black and white, for gray sources of 16 bits or floats.",
    ),
]
OnDamage = Annotated[
    str,
    option(
        "--on-damage",
        "ACTION",
        "For damaged frames: fail, skip (leave them out) or stop (end before them).",
        completion.one_of("fail", "skip", "stop"),
    ),
]
VideoStream = Annotated[
    int, option("--video-stream", "N", "Number of the video stream to read, from 0.")
]
ToneMap = Annotated[
    bool, option("--tone-map/--no-tone-map", None, "Map HDR video (PQ, HLG) to SDR, or refuse it.")
]
Deinterlace = Annotated[
    bool, option("--deinterlace", None, "Make whole frames of interlaced ones.")
]
Background = Annotated[
    str,
    option("--background", "COLOR", "Color behind transparent pixels, such as white or #ff8000."),
]
Start = Annotated[float, option("--start", "SECONDS", "Start time in seconds.")]
Duration = Annotated[
    float | None,
    option("--duration", "SECONDS", "Duration in seconds. [default: to the end]"),
]
StartFrame = Annotated[
    int | None, option("--start-frame", "N", "Instead of --start: number of the first frame.")
]
NumFrames = Annotated[
    int | None, option("--frames", "N", "Instead of --duration: number of frames.")
]
Timeout = Annotated[
    float, option("--timeout", "SECONDS", "Longest wait for the next frames of a video.")
]
ModelName = Annotated[
    str, option("--model", "NAME", "Shipped model or checkpoint file.", completion.models)
]
ModelInstead = Annotated[
    str | None,
    option(
        "--model",
        "NAME",
        "Shipped model or checkpoint file. [default: the one named in each code file]",
        completion.models,
    ),
]
Device = Annotated[
    str, option("--device", "NAME", "auto, cpu, cuda, cuda:1, mps ...", completion.devices)
]
Dtype = Annotated[
    str, option("--dtype", "NAME", "auto, float32, bfloat16 or float16.", completion.dtypes)
]
Threads = Annotated[int | None, option("--threads", "N", "CPU threads. [default: chosen by torch]")]
NoAudio = Annotated[bool, option("--no-audio", None, "Leave out the sound.")]
Overwrite = Annotated[bool, option("--overwrite", None, "Replace existing outputs.")]
SkipExisting = Annotated[
    bool,
    option(
        "--skip-existing", None, "Keep outputs that are complete and up to date, replace others."
    ),
]
Json = Annotated[bool, option("--json", None, "One JSON object per file on standard output.")]
Quiet = Annotated[bool, option("--quiet -q", None, "Print only errors.")]
Run = Annotated[Path, option("--out -o", "RUN", "Folder of the run; a stopped run is continued.")]


@dataclass(frozen=True)
class RateOptions:
    """Quantizer stages and compression; the fields are those of `EncodeOptions`."""

    num_stages: Stages = None
    num_bits: Bits = None
    min_psnr: MinPsnr = None
    max_bpp: MaxBpp = None
    fast: Fast = False
    effort: Effort = 0
    hysteresis: Hysteresis = 0.0
    compress: Compress = True
    latent_dtype: LatentType = "float16"


@dataclass(frozen=True)
class RangeOptions:
    """Stages and time range of a code file; the fields are those of `DecodeOptions`."""

    num_stages: Stages = None
    num_bits: Bits = None
    start_seconds: Start = 0.0
    duration_seconds: Duration = None
    start_frame: StartFrame = None
    num_frames: NumFrames = None


@dataclass(frozen=True)
class ArrayOptions:
    """Size and rate of an array of codes, item of a shard; the fields are in `DecodeOptions`."""

    size: ArraySize = None
    fps: ArrayRate = None
    item_id: ItemId = None
    item_index: ItemIndex = None

    def to_fields(self) -> dict[str, Any]:
        """Fields of `DecodeOptions`; raises a UsageError for a bad rate."""
        return {**vars(self), "fps": parse_rate(self.fps)}


@dataclass(frozen=True)
class PartOptions:
    """Time range, frame rate and size of a video."""

    size: Size = None
    fps: Rate = None
    start_seconds: Start = 0.0
    duration_seconds: Duration = None
    start_frame: StartFrame = None
    num_frames: NumFrames = None

    def to_fields(self) -> dict[str, Any]:
        """Fields of `EncodeOptions`; raises a UsageError for a bad rate."""
        return {**vars(self), "fps": parse_rate(self.fps)}


@dataclass(frozen=True)
class ReadingOptions:
    """Stream, damage, and treatment of pixels."""

    depth_range: DepthRange = None
    on_damage: OnDamage = "fail"
    video_stream: VideoStream = 0
    tone_map: ToneMap = True
    deinterlace: Deinterlace = False
    background: Background = "black"

    def to_fields(self) -> dict[str, Any]:
        """Fields of `EncodeOptions`; raises a UsageError for a bad range."""
        return {**vars(self), "depth_range": parse_range(self.depth_range)}


def parse_rate(text: str | None) -> Fraction | None:
    """Parse a frame rate; see `parse_fps`."""
    from vtok.video.frames import parse_fps

    return None if text is None else parse_fps(text)


def parse_range(text: str | None) -> tuple[float, float] | None:
    """Parse LO,HI; raises a UsageError."""
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError as exc:
        raise OptionError("depth_range", text, "a range such as 0,65535") from exc
    return low, high


@dataclass(frozen=True)
class ModelOptions:
    """A model, and the device and number type it runs in."""

    model: ModelName = "vtok-base"
    device: Device = "auto"
    dtype: Dtype = "auto"

    def load(self) -> LoadedTokenizer:
        """Load the model; imports torch."""
        from vtok.models.load import load

        return load(self.model, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class StoredModelOptions:
    """The model named in each code file, or one that replaces it."""

    model: ModelInstead = None
    device: Device = "auto"
    dtype: Dtype = "auto"

    def cache(self) -> ModelCache:
        """Check device and type, and return a cache that loads models on demand."""
        from vtok.models.load import ModelCache, pick_device, pick_dtype

        pick_dtype(self.dtype, pick_device(self.device))  # one usage error, not one per input
        return ModelCache(self.model, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class PrintOptions:
    """JSON, quiet and debug output of a command."""

    as_json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    @property
    def silent(self) -> bool:
        """Print no lines for people."""
        return self.quiet or self.as_json
