"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Files, folders, quoted globs, or - for standard input."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", help="File, or a folder for several inputs; - for standard output."
    ),
]
Stages = Annotated[
    int | None,
    typer.Option("--stages", min=1, help="Use the first so many stages of codes. [default: all]"),
]
Bits = Annotated[
    int | None,
    typer.Option("--bits", min=1, help="As many stages as fit into so many bits a position."),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Shipped checkpoint by name, or a file.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a clip on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
SkipExisting = Annotated[
    bool,
    typer.Option(
        "--skip-existing", help="Leave outputs that are there, whole, and made the same way."
    ),
]
