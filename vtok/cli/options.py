"""The options of the commands: what they are called, and what the help says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from vtok.cli import completion


def unfolded(command: Callable[..., None]) -> Callable[..., None]:
    """A command as Typer takes it: fields in place of each parameter that is a dataclass.

    They have the dataclass's own defaults, or those of the instance that is the parameter's
    default. The command is called with the dataclass made of what was asked for.
    """
    hints = get_type_hints(command, include_extras=True)
    flat: dict[str, Parameter] = {}
    folds: dict[str, tuple[Any, list[str]]] = {}
    for name, parameter in signature(command).parameters.items():
        kind: Callable[..., Any] = hints[name]
        if not is_dataclass(kind):
            flat[name] = parameter.replace(annotation=kind)
            continue
        usual = kind() if parameter.default is Parameter.empty else parameter.default
        folds[name] = (kind, [field.name for field in fields(kind)])
        for field, hint in get_type_hints(kind, include_extras=True).items():
            default = getattr(usual, field)
            flat[field] = Parameter(field, Parameter.KEYWORD_ONLY, default=default, annotation=hint)

    @wraps(command)
    def run(**values: Any) -> None:
        for name, (kind, names) in folds.items():
            values[name] = kind(**{field: values.pop(field) for field in names})
        command(**values)

    run.__signature__ = Signature(list(flat.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in flat.items()}
    return run


DEBUG = "vtok.debug"
"""Key in the context's `meta` under which `--debug` is kept."""


def _keep_debug(context: typer.Context, asked: bool) -> bool:
    if asked:
        context.meta[DEBUG] = True
    return asked


Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_keep_debug, help="Show the traceback of an error."),
]
"""Works by its callback: the commands themselves make no use of it."""
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        show_default=False,
        help="Files, folders, quoted globs, or - for standard input.",
        autocompletion=completion.codes,
    ),
]
InputsOrList = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        show_default=False,
        help="Files, folders, quoted globs, or - for standard input.",
        autocompletion=completion.videos,
    ),
]
Videos = Annotated[
    list[str],
    typer.Argument(
        metavar="VIDEO",
        show_default=False,
        help="Files, folders or quoted globs.",
        autocompletion=completion.videos,
    ),
]
FilesFrom = Annotated[
    list[str] | None,
    typer.Option(
        "--files-from", metavar="LIST", help="A file of paths, one a line; - for standard input."
    ),
]
Null = Annotated[bool, typer.Option("-0", "--null", help="NULs end the paths in --files-from.")]
Output = Annotated[
    str | None,
    typer.Option(
        *("--output", "-o"),
        metavar="PATH",
        help="File, or a folder for several inputs; - for standard output.",
    ),
]
Stages = Annotated[
    int | None,
    typer.Option(
        "--stages", metavar="N", help="Use the first N stages of codes. [default: all of them]"
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(
        "--bits", metavar="N", help="Instead, as many stages as fit into N bits a position."
    ),
]
MinPsnr = Annotated[
    float | None,
    typer.Option(
        "--min-psnr",
        metavar="DB",
        help="Choose for each chunk the fewest stages that reach DB: decodes up to once a stage.",
    ),
]
Compress = Annotated[
    bool,
    typer.Option("--compress/--no-compress", help="Entropy-code the codes: half the bytes."),
]
MaxBpp = Annotated[
    float | None,
    typer.Option(
        "--max-bpp",
        metavar="X",
        help="Choose for each chunk the most stages that keep the file to X bits a pixel.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="vtok, npy, safetensors or tokens. [default: by the name that -o gives, else vtok]",
        autocompletion=completion.one_of("vtok", "npy", "safetensors", "tokens"),
    ),
]
NumTokens = Annotated[
    int | None,
    typer.Option(
        "--num-tokens",
        metavar="S",
        help="Learned tokens of a latent step, 1 to 64; --to vtok keeps their bits. "
        "[default: 8 for --to tokens]",
    ),
]
TokensUsed = Annotated[
    int | None,
    typer.Option(
        "--num-tokens", metavar="S", help="Use the first S tokens. [default: all of them]"
    ),
]
TokenLearner = Annotated[
    str | None,
    typer.Option(
        "--token-learner",
        metavar="NAME",
        help="v10, v11, grouped, or a file that `vtok tokens train` made. [default: v11]",
        autocompletion=completion.learners,
    ),
]
TokenLearnerInstead = Annotated[
    str | None,
    typer.Option(
        "--token-learner",
        metavar="NAME",
        help="The checkpoint of a token learner. [default: what each file of tokens names]",
        autocompletion=completion.learners,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="SIZE",
        help="Short side (256) or WIDTHxHEIGHT. [default: the source's own]",
    ),
]
Rate = Annotated[
    str | None,
    typer.Option(
        "--fps",
        metavar="RATE",
        help="Frame rate, such as 10 or 30000/1001. [default: the source's own]",
    ),
]
Start = Annotated[float, typer.Option("--start", metavar="SECONDS", help="How much to skip.")]
Duration = Annotated[
    float | None,
    typer.Option("--duration", metavar="SECONDS", help="How much to take. [default: to the end]"),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", metavar="SECONDS", help="How long to wait for a video's next frames."
    ),
]
Crf = Annotated[
    int,
    typer.Option(
        "--crf", metavar="N", help="Quality of the video written, from 0 (lossless) to 51."
    ),
]
Salvage = Annotated[
    bool, typer.Option("--salvage", help="Decode what is whole of a cut or damaged file.")
]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="A shipped checkpoint's name, or a file.",
        autocompletion=completion.models,
    ),
]
ModelInstead = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="A shipped checkpoint's name, or a file. [default: what each code file names]",
        autocompletion=completion.models,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:1, mps ...",
        autocompletion=completion.devices,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="auto, float32, bfloat16 or float16.",
        autocompletion=completion.dtypes,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a file on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


@dataclass(frozen=True)
class Part:
    """Which frames of a video, and how large; for `vtok.cli.options.unfolded`, as those below."""

    size: Size = None
    fps: Rate = None
    start: Start = 0.0
    duration: Duration = None

    @property
    def rate(self) -> Fraction | None:
        """The frame rate; raises a UsageError for what is none."""
        from vtok.video.frames import parse_fps

        return None if self.fps is None else parse_fps(self.fps)


@dataclass(frozen=True)
class Running:
    """What a model runs on."""

    device: Device = "auto"
    dtype: Dtype = "auto"


@dataclass(frozen=True)
class Saying:
    """What a command says, and how."""

    as_json: Json = False
    quiet: Quiet = False
    debug: Debug = False


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
SkipExisting = Annotated[
    bool,
    typer.Option(
        "--skip-existing",
        help="Keep outputs that are there, whole, and as far as they tell made the same way; "
        "replace the others.",
    ),
]
TrainingData = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA",
        show_default=False,
        help="Videos and photos: files, folders, quoted globs, tar shards.",
        autocompletion=completion.training_data,
    ),
]
Run = Annotated[
    Path,
    typer.Option(
        *("--out", "-o"),
        metavar="RUN",
        show_default=False,
        help="Folder of the run; one that was stopped goes on.",
    ),
]
