"""Options of a data set, and its recipe: the options and the model that determine the codes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from vtok.dataset.folder import WHOLE, Partition
from vtok.errors import OptionError
from vtok.models.checkpoint import CheckpointInfo
from vtok.pipeline.options import EncodeOptions, select_stages
from vtok.video.frames import ReadOptions

FILE_FORMATS = ("vtok", "npy", "safetensors")
"""One file per item."""
SHARD_FORMATS = ("tar", "tar-vtok", "memmap", "parquet")
"""Many items per file."""
FORMATS = (*FILE_FORMATS, *SHARD_FORMATS)
ENGINES = ("local", "ray")
MIN_MEMORY_MB = 256
FAILURE_LIMIT = r"\d{1,12}|\d{1,3}(\.\d{1,6})?%"


@dataclass(frozen=True)
class DatasetOptions:
    """Options of `encode_dataset`.

    Attributes:
        to: output format: vtok, npy or safetensors for one file per item; tar, tar-vtok, memmap
            or parquet for shards.
        encode: options for each item; its format, start, duration and overwriting are ignored.
            Sound is left out unless `audio` is copy, which needs vtok or tar-vtok.
        shard_size: items per shard.
        psnr: decode the codes again and measure the PSNR.
        workers: items encoded at the same time; by default the number of cores, but at least
            `batch`. With Ray, the number of actors.
        batch: items per model call; by default 1 on a CPU and 8 elsewhere.
        memory_mb: memory limit of a decoder process in MB; None for no limit.
        clip_timeout_seconds: time limit per item; None for no limit.
        device, dtype: as for `vtok.load`; ignored for a tokenizer that is loaded already.
        engine: local, or ray.
        ray_address: address of a Ray cluster, such as auto; if None, RAY_ADDRESS, or else a
            cluster is started on this machine.
        partition: items that this run encodes.
        retry_failed: encode items again that failed in earlier runs.
        overwrite: replace files that are not from this data set, and codes of another recipe.
        max_failures: stop if more items fail: a number, or a share of all items such as "5%".

    Raises:
        OptionError: an unusable value.
    """

    to: str = "vtok"
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    shard_size: int = 1000
    psnr: bool = False
    workers: int | None = None
    batch: int | None = None
    memory_mb: int | None = 4096
    clip_timeout_seconds: float | None = None
    device: str = "auto"
    dtype: str = "auto"
    engine: str = "local"
    ray_address: str | None = None
    partition: Partition = WHOLE
    retry_failed: bool = False
    overwrite: bool = False
    max_failures: int | str | None = None

    def __post_init__(self) -> None:
        for name, known in (("engine", ENGINES), ("to", FORMATS)):
            if getattr(self, name) not in known:
                raise OptionError(name, getattr(self, name), f"one of {', '.join(known)}")
        for name, least in (
            ("shard_size", 1), ("workers", 1), ("batch", 1), ("memory_mb", MIN_MEMORY_MB),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(name, value, f"{least} or more")
        seconds = self.clip_timeout_seconds
        if seconds is not None and not seconds > 0:
            raise OptionError("clip_timeout_seconds", f"{seconds:g}", "more than 0 seconds")
        if self.to == "memmap" and "x" not in (self.encode.size or ""):
            raise OptionError("to", "memmap", "`size` WIDTHxHEIGHT, since all items need one size")
        limit = self.max_failures
        if limit is not None and not re.fullmatch(FAILURE_LIMIT, str(limit), re.ASCII):
            raise OptionError("max_failures", limit, "a number such as 10, or 5%")
        replace(self.encode, to=self.file_format)  # refuses a rate or sound that it cannot have

    @property
    def file_format(self) -> str:
        """Format of the file of each item, in the data set or before it goes into a shard."""
        if self.to in FILE_FORMATS:
            return self.to
        return "vtok" if self.to == "tar-vtok" else "npy"

    def failure_limit(self, items: int) -> float:
        """Return how many of a number of items may fail; infinite without a limit."""
        text = "inf" if self.max_failures is None else str(self.max_failures)
        return float(text[:-1]) / 100 * items if text.endswith("%") else float(text)


def make_recipe(options: DatasetOptions, info: CheckpointInfo, dtype: str) -> dict[str, Any]:
    """Collect everything that determines the codes of an item, as JSON types."""
    encode, shapes = options.encode, info.geometry
    if shapes.entries is None and options.to in ("vtok", "tar-vtok", "memmap"):
        expected = f"npy, safetensors, tar or parquet: {info.name} has latents and no codes"
        raise OptionError("to", options.to, expected)
    stages = select_stages(replace(encode, to=options.file_format), info)
    return {
        "to": options.to,
        "size": encode.size,
        "fps": None if encode.fps is None else str(encode.fps),
        "stages": stages,
        "min_psnr": encode.min_psnr,
        "max_bpp": encode.max_bpp,
        "compress": encode.compress and options.file_format == "vtok",
        **({"reading": reading} if (reading := encode.reading.changed_values()) else {}),
        # not in older recipes
        **({"fast": True} if encode.fast else {}),
        **({"effort": encode.effort} if encode.effort else {}),
        **({"hysteresis": encode.hysteresis} if encode.hysteresis else {}),
        **({"audio": "copy"} if encode.audio == "copy" else {}),
        **({"latents": encode.latent_dtype} if shapes.entries is None else {}),
        "model": info.name,
        "config_sha256": info.config_sha256,
        "weights_sha256": info.weights_sha256,
        "dtype": dtype,
    }


def with_recipe(options: DatasetOptions, recipe: dict[str, Any]) -> DatasetOptions:
    """Replace the options that determine the codes by those that a data set was made with."""
    encode = replace(
        options.encode,
        size=recipe["size"],
        fps=None if recipe["fps"] is None else Fraction(recipe["fps"]),
        num_stages=recipe["stages"],
        num_bits=None,
        min_psnr=recipe["min_psnr"],
        max_bpp=recipe["max_bpp"],
        fast=recipe.get("fast", False),
        effort=recipe.get("effort", 0),
        hysteresis=recipe.get("hysteresis", 0.0),
        audio=recipe.get("audio"),
        latent_dtype=recipe.get("latents", "float16"),
        **vars(ReadOptions.from_fields(recipe.get("reading", {}))),
        compress=recipe["compress"],
    )
    return replace(options, to=recipe["to"], encode=encode, dtype=recipe["dtype"])
