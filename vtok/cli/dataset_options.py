"""The options of `vtok dataset`: what they are called, and what the help says of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from vtok.cli import options as opt
from vtok.cli.completion import one_of

if TYPE_CHECKING:
    from vtok.dataset.api import DatasetOptions

TIMEOUT = 60.0
"""Seconds that a decoder may go without giving frames, where nothing is said."""

Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        show_default=False,
        help="Folders, files, quoted globs, tables (CSV, TSV, JSONL, parquet), tar shards, URLs.",
    ),
]
Folder = Annotated[str, typer.Argument(metavar="FOLDER", show_default=False, help="The data set.")]
Output = Annotated[
    str, typer.Option(*("--output", "-o"), metavar="FOLDER", help="Folder of the data set.")
]
Format = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="vtok, npy, safetensors: a file a clip; tar, tar-vtok, memmap, parquet: shards.",
        autocompletion=one_of("vtok", "npy", "safetensors", "tar", "tar-vtok", "memmap", "parquet"),
    ),
]
InputColumn = Annotated[
    str | None,
    typer.Option("--input-column", metavar="NAME", help="Of paths in tables. [default: input]"),
]
IdColumn = Annotated[
    str | None,
    typer.Option("--id-column", metavar="NAME", help="Of ids in tables. [default: id, if there]"),
]
StartColumn = Annotated[
    str | None,
    typer.Option("--start-column", metavar="NAME", help="Of seconds at which clips begin."),
]
EndColumn = Annotated[
    str | None, typer.Option("--end-column", metavar="NAME", help="Of seconds at which clips end.")
]
ShardSize = Annotated[int, typer.Option("--shard-size", metavar="N", help="Clips in a shard.")]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Do share I (from 0) of N, the same whatever the order; auto under Slurm, auto/N in "
        "Kubernetes.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", help="Clips under way at once. [default: the cores]"),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch", metavar="N", help="Clips of a pass of the model. [default: 1, on a GPU 8]"
    ),
]
Engine = Annotated[
    str, typer.Option("--engine", metavar="NAME", help="local, or ray for a Ray cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="Of a Ray cluster, such as auto. [default: one on this machine]",
    ),
]
Memory = Annotated[
    int,
    typer.Option("--memory", metavar="MB", help="Most memory of a decoder; 0 sets no limit."),
]
ClipTimeout = Annotated[
    float | None,
    typer.Option("--clip-timeout", metavar="SECONDS", help="Most time for one clip."),
]
Psnr = Annotated[
    bool, typer.Option("--psnr", help="Decode what is encoded and measure the PSNR: slower.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try again what failed in earlier runs.")
]
MaxFailures = Annotated[
    str | None,
    typer.Option("--max-failures", metavar="N|N%", help="Stop when more clips have failed."),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace files of others, and codes that were made in another way."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", "-n", help="Say what would be done, how long, and how large."),
]
Sample = Annotated[
    int,
    typer.Option("--sample", metavar="N", help="Clips that --dry-run encodes for its estimate."),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object a clip on standard output, then a summary.")
]


@dataclass
class Means:
    """Where a run over clips works, and what a clip may take; for `vtok.cli.options.unfolded`."""

    device: opt.Device = "auto"
    workers: Workers = None
    batch: Batch = None
    clip_timeout: ClipTimeout = None
    memory: Memory = 4096

    def put_into(self, options: DatasetOptions) -> DatasetOptions:
        """Options with these in place of their own."""
        return replace(
            options,
            device=self.device,
            workers=self.workers,
            batch=self.batch,
            clip_seconds=self.clip_timeout,
            memory_limit=self.memory * 2**20 or None,
        )
