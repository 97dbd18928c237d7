"""`vtok import FAMILY` and `vtok models`: the folder of models, licences, the Hub, digests."""

import hashlib
import json
import logging
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from commands import rows, tiny_checkpoint, vtok
from huggingface_hub import errors
from models import make_tokenizer
from safetensors.torch import save_file

from vtok.errors import InputError, UsageError
from vtok.evaluation.probe import check_frames, cost_of, make_digests
from vtok.models import hub
from vtok.models.checkpoint import (
    list_models,
    read_card,
    read_info,
    save_checkpoint,
    shipped_models,
    user_folder,
)
from vtok.models.imports import FAMILIES, model_name, storage_dtype
from vtok.models.load import ModelCache, load
from vtok.models.taehv import TaehvConfig, TaehvTokenizer
from vtok.nn.tokenizer import VideoTokenizer

SMALL = TaehvConfig(latent_dim=4, encoder_dim=8, decoder_dims=(8, 8, 8, 8))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of imported models, which does not exist yet."""
    path = tmp_path / "data" / "models"
    monkeypatch.setenv("VTOK_MODELS", str(path))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a published file of a tiny taehv, whose weights bfloat16 holds exactly."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("taehv") / "tiny taehv.pth"
    state = TaehvTokenizer.from_config(SMALL).state_dict()
    torch.save({name: tensor.bfloat16() for name, tensor in state.items()}, path)
    return path


def test_imported_model_is_found_by_name(weights: Path, folder: Path) -> None:
    result = vtok("import", "taehv", weights)
    assert result.exit_code == 0, result.stderr
    assert "licence of the weights: MIT" in result.stderr
    path = folder / "tiny-taehv.safetensors"
    assert list_models() == [*shipped_models(), "tiny-taehv"]
    info = read_info("tiny-taehv")
    assert (info.path, info.arch, info.licence) == (path, "taehv", "MIT")
    assert info.source == "tiny taehv.pth"
    assert load("tiny-taehv", device="cpu", dtype="float32").info == info
    assert ModelCache(device="cpu").get("tiny-taehv").info == info
    with pytest.raises(InputError, match="tiny-taehv"):
        load("tiny-taehv.pth")


def test_weights_are_stored_in_bfloat16_where_that_is_exact(weights: Path, folder: Path) -> None:
    assert vtok("import", "taehv", weights, "--name", "small").exit_code == 0
    stored = torch.load(weights, weights_only=True)
    made = load("small", device="cpu", dtype="float32").tokenizer
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, stored[name].float())
    assert storage_dtype(made) == torch.bfloat16
    assert (folder / "small.safetensors").stat().st_size < 2.5 * read_info("small").num_parameters
    next(made.parameters()).data.fill_(1 / 3)
    assert storage_dtype(made) == torch.float32


def test_output_and_names(weights: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "here.safetensors"
    (row,) = rows(vtok("import", "taehv", weights, "-o", output, "--json"))
    assert (row["name"], row["output"], row["licence"]) == ("here", str(output), "MIT")
    assert row["entries"] is None
    assert row["weights_sha256"] == read_info(output).weights_sha256
    assert not folder.exists()
    before = output.read_bytes()
    assert vtok("import", "taehv", weights, "-o", output).exit_code == 1
    assert vtok("import", "taehv", weights, "-o", output, "--overwrite").exit_code == 0
    assert output.read_bytes() == before
    for name in ("vtok-base", "a/b", "..", "-", "a b"):
        result = vtok("import", "taehv", weights, "--name", name)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: --name {name}: expected")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/vidtok_fsq_causal_488_32768.ckpt", "vidtok_fsq_causal_488_32768"),
        ("a/Cosmos-0.1-Tokenizer-DV4x8x8/encoder.jit", "Cosmos-0.1-Tokenizer-DV4x8x8"),
        ("a/Cosmos-0.1-Tokenizer-DV4x8x8/", "Cosmos-0.1-Tokenizer-DV4x8x8"),
        ("a/b c/model.safetensors", "b-c"),
        ("hf:nvidia/Cosmos-1.0", "Cosmos-1.0"),
        ("hf:nvidia/Cosmos-1.0@main/model.pt", "Cosmos-1.0"),
        ("hf:madebyollin/taehv/taew2_1.pth", "taew2_1"),
    ],
)
def test_default_name(path: str, name: str) -> None:
    assert model_name(path) == name


def test_shipped_names_come_first(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "vtok-base.safetensors").write_bytes(b"damaged")
    assert list_models() == shipped_models()
    assert read_info("vtok-base").path.parent != folder


def test_user_folder_of_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VTOK_MODELS")
    for platform, variable in (("linux", "XDG_DATA_HOME"), ("win32", "LOCALAPPDATA")):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setenv(variable, str(tmp_path))
        assert user_folder() == tmp_path / "vtok" / "models"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_folder() == tmp_path / "Library" / "Application Support" / "vtok" / "models"


def test_failed_import_writes_nothing(weights: Path, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"spam": torch.ones(2)}, other)
    for path, code in ((other, 4), (tmp_path / "missing.pth", 5)):
        result = vtok("import", "taehv", path)
        assert result.exit_code == code, result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert [*folder.iterdir()] == []
    blocked = tmp_path / "blocked"
    blocked.touch()
    result = vtok("import", "taehv", weights, "-o", blocked / "a.safetensors")
    assert result.exit_code == 1


class FakeHub:
    """Stand-in for `hf_hub_download` that has one file, or raises an error."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self.folder, self.error = folder, error
        self.calls: list[tuple[str, str, str | None]] = []

    def __call__(self, repo_id: str, filename: str, *, revision: str | None = None) -> str:
        """Return the path of a file in the cache."""
        self.calls.append((repo_id, filename, revision))
        if self.error:
            raise self.error
        return str(self.folder / filename)


def test_import_from_the_hub(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeHub(weights.parent)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake)
    path = f"hf:madebyollin/taehv@v1/{weights.name}"
    (row,) = rows(vtok("import", "taehv", path, "--name", "tae", "--json"))
    assert fake.calls == [("madebyollin/taehv", weights.name, "v1")]
    assert row["source"] == path
    assert read_info("tae").source == path


def test_usual_files_of_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeHub(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake)
    wanted = hub.parse("hf:nvidia/Cosmos-0.1-Tokenizer-DV4x8x8")
    assert hub.download(wanted, FAMILIES["cosmos"].hub_files) == tmp_path
    assert [name for _, name, _ in fake.calls] == ["encoder.jit", "decoder.jit"]
    with pytest.raises(UsageError, match="name the file, as in hf:a/b/FILE"):
        hub.download(hub.parse("hf:a/b"), ())


HUB_ERRORS = {
    errors.GatedRepoError: "accept the terms",
    errors.RepositoryNotFoundError: "no such repository, or a private one",
    errors.RevisionNotFoundError: "no such revision",
    errors.EntryNotFoundError: "no such file",
    errors.LocalEntryNotFoundError: "there is no network",
    errors.OfflineModeIsEnabled: "there is no network",
    ConnectionError: "cannot be downloaded (ConnectionError: line one line two)",
}


@pytest.mark.parametrize("kind", HUB_ERRORS, ids=lambda kind: kind.__name__)
def test_hub_errors_are_one_line(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    error = kind.__new__(kind)  # some want the response of a server
    Exception.__init__(error, "line one\nline two")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", FakeHub(Path(), error))
    result = vtok("import", "taehv", "hf:org/repo/file.pth")
    assert result.exit_code == 5
    assert result.stderr.startswith("error: hf:org/repo/file.pth: ")
    assert HUB_ERRORS[kind] in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_attempts_without_network_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("huggingface_hub.utils._http")

    def download(*arguments: str, revision: str | None) -> str:
        log.warning("Retrying in 1s")
        raise errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(log, "handlers", [caplog.handler])
    assert vtok("import", "taehv", "hf:org/repo/file.pth").exit_code == 5
    assert not caplog.records
    log.warning("of another program")
    assert {record.message for record in caplog.records} == {"of another program"}


def test_missing_hub_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", ModuleType("empty"))
    result = vtok("import", "taehv", "hf:org/repo/file.pth")
    assert result.exit_code == 2
    assert "pip install 'vtok[hf]'" in result.stderr


@pytest.mark.parametrize("text", ["hf:", "hf:a", "hf:a/../b", "hf:a/b/../c", "hf:a/b@/c", "hf:-/b"])
def test_bad_hub_paths(text: str) -> None:
    with pytest.raises(UsageError, match="expected hf:ORG/REPO"):
        hub.parse(text)


def test_digests_are_of_the_documented_arrays(tmp_path: Path) -> None:
    model = load(tiny_checkpoint(tmp_path), device="cpu", dtype="float32")
    frames = check_frames(64, 64)
    assert frames[3, 17, 40, 2] == (3 * 40 + 5 * 17 + 7 * 3 + 40 * 17 // 16 + 80) % 256
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        codes = model.tokenizer.to_codes(model.tokenizer.encode_latents(clip))
        decoded = model.tokenizer.decode(codes)[0].permute(1, 2, 3, 0).numpy()
    levels = np.clip(np.round((decoded + 1) * 127.5), 0, 255).astype(np.uint8)
    first, second = make_digests(model)
    assert first.codes_sha256 == hashlib.sha256(codes[0].int().numpy().tobytes()).hexdigest()
    assert first.frames_sha256 == hashlib.sha256(levels.tobytes()).hexdigest()
    assert first.codes_shape == codes.shape[1:]
    assert len(first.some_codes) == 8
    assert (first.size, second.size) == ("64x64", "128x96")
    assert first.codes_sha256 != second.codes_sha256
    assert make_digests(model) == [first, second]


def test_check_prints_the_digests_of_import_and_models(weights: Path) -> None:
    (made,) = rows(vtok("import", "taehv", weights, "--name", "tae", "--check", "--json"))
    (listed,) = rows(vtok("models", "tae", "--check", "--json"))
    assert made["digests"] == listed["digests"]
    small = listed["digests"][0]
    assert (small["size"], small["codes_sha256"], small["some_codes"]) == ("64x64", None, [])
    shown = vtok("models", "tae", "--check").stdout
    assert small["frames_sha256"] in shown
    assert "continuous, 4 channels" in shown


def test_models_lists_shipped_and_imported(weights: Path, folder: Path) -> None:
    assert vtok("import", "taehv", weights, "--name", "tae").exit_code == 0
    base, tae = rows(vtok("models", "--json"))
    assert (base["name"], base["shipped"], base["licence"]) == ("vtok-base", True, "Apache-2.0")
    assert (tae["name"], tae["shipped"], tae["licence"]) == ("tae", False, "MIT")
    assert tae["kmac_per_pixel"]["decoder"] > 0
    shown = vtok("models").stdout
    assert "4x8x8, 512 entries, 72 bits per position in 8 stages, streams" in shown
    (folder / "broken.safetensors").write_bytes(b"damaged")
    result = vtok("models", "--json")
    assert result.exit_code == 3
    assert [row["name"] for row in rows(result)] == ["vtok-base", "tae"]
    assert "broken.safetensors: not a readable safetensors file" in result.stderr
    assert vtok("models", "broken").exit_code == 4


@pytest.mark.parametrize("kind", ["fast", "classic", "linear"])
def test_cost_of_each_architecture_is_counted(kind: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", make_tokenizer(kind), kind)
    encoder, decoder = cost_of(read_info(tmp_path / "a.safetensors"))
    assert min(encoder, decoder) > 0


def test_cost_counts_multiplications(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path)
    encoder, decoder = cost_of(read_info(path))
    tokenizer = load(path, device="cpu").tokenizer
    assert isinstance(tokenizer, VideoTokenizer)
    assert 0 < encoder < read_info(path).num_parameters
    assert 0 < decoder < read_info(path).num_parameters
    card = read_card("vtok-base")
    stated = re.search(
        r"([\d.]+) thousand\s+multiply-adds .*?([\d.]+)\s+to\s+decode", card, re.DOTALL
    )
    assert stated is not None
    base = cost_of(read_info("vtok-base"))
    assert base == pytest.approx([float(number) for number in stated.groups()], abs=0.2)


def test_every_family_is_a_command() -> None:
    shown = vtok("import", "--help").stdout
    for name in FAMILIES:
        assert f"\n  {name} " in shown
        assert vtok("import", name, "--help").exit_code == 0


def test_json_facts_are_plain(capsys: Any) -> None:
    (row,) = rows(vtok("models", "vtok-base", "--json"))
    assert json.loads(json.dumps(row)) == row
    assert row["psnr"]["18"] > 20
