"""Import of published tokenizers: families of files, their licences, and the folder of models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtok.errors import CheckpointError, InputError, OptionError, OutputError, VtokError
from vtok.models import hub
from vtok.models.checkpoint import (
    MAX_TEXT,
    CheckpointInfo,
    read_info,
    save_checkpoint,
    shipped_models,
    user_folder,
)

if TYPE_CHECKING:
    import torch

    from vtok.nn.interface import Tokenizer

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
COMMON = frozenset({"encoder", "decoder", "autoencoder", "model", "diffusion_pytorch_model"})
"""File names that say nothing about a model, so that it is named after the folder."""


@dataclass(frozen=True)
class Family:
    """Files of one project.

    Attributes:
        name: Word of `vtok import`.
        reader: Module below `vtok.models` and function `(path, **options) -> (tokenizer, notes)`.
        licence: Licence of the published weights; empty if unknown, or if it depends on the files.
        hub_files: Files that every repository of the family on the Hub has.
        example: Name of a published file, if folders cannot be read.
    """

    name: str
    reader: str
    licence: str = ""
    hub_files: tuple[str, ...] = ()
    example: str = ""

    def read(self, path: Path, options: dict[str, Any]) -> tuple[Tokenizer, Sequence[str]]:
        """Read the files, and return the tokenizer with remarks for the user."""
        module, _, function = self.reader.partition(":")
        made: tuple[Tokenizer, Sequence[str]] = getattr(
            import_module(f"vtok.models.{module}"), function
        )(path, **options)
        return made


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "cosmos", "cosmos:read_cosmos", "NVIDIA Open Model License",
            ("encoder.jit", "decoder.jit"),
        ),
        Family("vidtok", "vidtok:read_vidtok", "MIT", example="vidtok_fsq_causal_488_262144.ckpt"),
        Family(
            "open-magvit2", "open_magvit2:read_open_magvit2", "Apache-2.0",
            example="video_128_262144.ckpt",
        ),
        Family("1x", "open_magvit2:read_open_magvit2", "Apache-2.0", example="magvit2.ckpt"),
        Family(
            "o2-magvit2", "open_magvit2:read_open_magvit2", "Apache-2.0", ("model.safetensors",),
            "model.safetensors",
        ),
        Family("taehv", "taehv:read_taehv", "MIT", example="taew2_1.pth"),
        Family("emu3", "emu3:read_emu3", "Apache-2.0", ("model.safetensors",)),
        Family(
            "diffusers", "diffusers_vae:read_diffusers", "",
            ("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
        ),
        Family("magvit2", "magvit2:import_magvit2", example="tokenizer.pt"),
    )
}  # fmt: skip


SIGNS = {
    r"encoder[.-]conv_in[.-]0[.-]conv3d[.-]": ("cosmos",),
    r"encoder\.down_temporal\.": ("vidtok",),
    r"encoder\.conv_first\.": ("o2-magvit2",),
    r"(encoder\.conv_in\.conv_1|decoder\.adaptive)\.": ("open-magvit2",),
    r"encoder\.time_conv\.": ("emu3",),
    r"encoder\.down_blocks\.": ("diffusers",),
    r"encoder\.mid_block\.": ("1x", "open-magvit2"),
    r"encoder\.\d+\.conv\.0\.": ("taehv",),
    r"encoder_layers\.": ("magvit2",),
}
"""Names of tensors that tell the family; the first that a file has counts."""
FOLDER_SIGNS = ("encoder.jit", "autoencoder.jit", "model.pt", "*.safetensors")


@dataclass(frozen=True)
class Imported:
    """An imported checkpoint.

    Attributes:
        info: Its header.
        notes: Remarks about the files that were read, one line each.
    """

    info: CheckpointInfo
    notes: tuple[str, ...]


def import_checkpoint(
    family: str,
    path: str,
    output: Path | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Imported:
    """Convert published files to a checkpoint.

    Args:
        family: A key of `FAMILIES`.
        path: File or folder, or `hf:ORG/REPO[@REVISION][/FILE]`.
        output: Checkpoint to write; default: NAME.safetensors in `user_folder()`.
        name: Name of the model in code files. Default: the stem of `output`, or else the name of
            the file, folder or repository.
        overwrite: Replace an existing output.
        options: Options of the family's reader.

    Raises:
        OptionError: An option is invalid.
        InputError: The files are missing, or cannot be read or downloaded.
        CheckpointError: The files are damaged or of another kind.
        OutputError: The output exists already, or cannot be written.
    """
    from vtok._files import check_output

    chosen = FAMILIES[family]
    name = name or (output.stem if output else model_name(path))
    if output is None:
        if not NAME.fullmatch(name):
            raise OptionError("name", name[:80], "letters, digits, dots, dashes and underscores")
        if name in shipped_models():
            raise OptionError("name", name, "a name that is not of a shipped model")
        output = user_folder() / f"{name}.safetensors"
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise OutputError(f"{output.parent}: cannot be created ({exc.strerror})") from exc
    check_output(output, overwrite)
    from_hub = path.startswith(hub.PREFIX)
    local = hub.download(hub.parse(path), chosen.hub_files) if from_hub else Path(path)
    _check_family(path, local, family)
    if chosen.example and local.is_dir():
        raise InputError(f"{path}: is a folder: pass the file in it, such as {chosen.example}")
    tokenizer, notes = chosen.read(local, options)
    save_checkpoint(
        output,
        tokenizer,
        name,
        storage_dtype(tokenizer),
        licence=_licence(chosen, tokenizer),
        source=_printable(path if from_hub else local.absolute().name),
    )
    return Imported(read_info(output), tuple(notes))


def _check_family(path: str, local: Path, family: str) -> None:
    """Refuse a checkpoint of vtok, and files that look like those of another family."""
    try:
        own = read_info(local).name
    except VtokError:
        found = guess_families(local)
        if found and family not in found:
            raise CheckpointError(
                f"{path}: looks like {' or '.join(found)}, not {family}: import it as {found[0]}"
            ) from None
    else:
        raise CheckpointError(f"{path}: is the vtok checkpoint {own} already: no import needed")


def guess_families(path: Path) -> tuple[str, ...]:
    """Guess the families that a file or folder may be of; none if it looks like no known one."""
    from vtok.models.torch_file import tensor_names

    if path.is_dir():
        configs = [path / "config.json", path / "vae" / "config.json"]
        if any(file.is_file() and b'"_class_name"' in file.read_bytes() for file in configs):
            return ("diffusers",)
        files = [file for sign in FOLDER_SIGNS for file in sorted(path.glob(sign))]
        path = files[0] if files else path
    names = tensor_names(path)
    found = (families for sign, families in SIGNS.items() if any(re.search(sign, n) for n in names))
    return next(found, ())


def _licence(family: Family, tokenizer: Tokenizer) -> str | None:
    if family.name != "diffusers":
        return family.licence or None
    licences: dict[str, str] = import_module("vtok.models.diffusers_vae").LICENSES
    return licences.get(tokenizer.config.class_name)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:MAX_TEXT]


def model_name(path: str) -> str:
    """Name a model after its file, or its folder or repository where the file's name is common."""
    if path.startswith(hub.PREFIX):
        wanted = hub.parse(path)
        path = f"{wanted.repository}/{wanted.file or ''}"
    place = Path(path)
    if place.suffix and place.name.lower().endswith(
        (".jit", ".pt", ".pth", ".ckpt", ".safetensors")
    ):
        place = place.parent if place.stem.lower() in COMMON else place.with_suffix("")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", place.absolute().name).strip("-.") or "model"


def storage_dtype(tokenizer: Tokenizer) -> torch.dtype:
    """Choose bfloat16 if that holds all weights exactly, as for weights published in it."""
    import torch

    exact = all(
        torch.equal(tensor, tensor.bfloat16().to(tensor.dtype))
        for tensor in tokenizer.state_dict().values()
    )
    return torch.bfloat16 if exact else torch.float32
