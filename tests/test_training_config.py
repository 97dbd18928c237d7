"""Training config: fields are checked by name, and files read back equal."""

from pathlib import Path

import pytest
from training import tiny_config

from vtok.errors import InputError, OptionError, UsageError
from vtok.nn.config import PRESETS, TokenizerConfig
from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.config import (
    FREE,
    TrainingConfig,
    merged,
    parse_settings,
    read_config,
    write_config,
)
from vtok.training.state import RunFolder, config_digest

BAD = [
    ({"steps": 0}, "steps=0: expected a whole number from 1"),
    ({"batch": 2.5}, "batch=2.5: expected a whole number"),
    ({"batch": True}, "batch=True: expected a whole number"),
    ({"crop": 4}, "crop=4: expected a whole number from 8"),
    ({"photo_share": 1.5}, "photo_share=1.5: expected a number from 0 to 1"),
    ({"learning_rate": float("nan")}, "learning_rate=nan: expected a number"),
    ({"l1": -1}, "l1=-1: expected a number from 0"),
    ({"ema": 1.0}, "ema=1.0: expected a number from 0 to below 1"),
    ({"schedule": "step"}, "schedule='step': expected one of cosine, linear"),
    ({"precision": "float16"}, "precision='float16': expected one of auto"),
    ({"preset": "vtok-huge"}, "preset='vtok-huge': expected one of vtok-base"),
    ({"init": 3}, "init=3: expected a string"),
    ({"model": 3}, "model=3: expected a table"),
    ({"model": {"num_stages": 0}}, "model: num_stages=0: expected a whole number"),
    ({"model": {"spam": 1}}, "model: unknown config keys: spam"),
    ({"model": {"dim_cond": 4}}, "model.dim_cond=4: expected None"),
    ({"l1": 0, "rmse": 0}, "expected a weight above 0 for one of l1, mse, rmse, ms_ssim"),
    ({"ms_ssim": 0.5, "crop": 8}, "crop=8: expected at least 11"),
    ({"model": {"channels": 1}}, "model.channels=1: expected 3, for training"),
    ({"only_second_pass": 1}, "only_second_pass=1: expected true or false"),
    ({"only_second_pass": True, "init": "a", "model": {"second_pass": []}}, "model.second_pass="),
    ({"only_second_pass": True, "model": {"second_pass": [1, 2]}}, "init='none': expected the"),
    ({"model": {"decoder_init_dim": None}}, "model=None: expected values that TOML can hold"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=lambda x: str(x)[:30])
def test_invalid_field_is_named(fields: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainingConfig(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(UsageError, match="unknown training keys: batchsize, spam"):
        TrainingConfig.from_dict({"spam": 1, "batchsize": 2, "steps": 5})


def test_written_config_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for config in (
        TrainingConfig(),
        tiny_config(init='a "quoted" näme\\', l1=1, ema=0.999, entropy=1e-5, cache_gib=0),
    ):
        write_config(path, config)
        again = TrainingConfig.from_dict(read_config(path))
        assert again == config
        assert again.tokenizer == config.tokenizer
        assert config_digest(again) == config_digest(config)


def test_model_keys_override_the_preset() -> None:
    given = parse_settings(["model.num_stages=4", "model.stage_plan=[0, 0, 1, 1]"])
    config = TrainingConfig.from_dict(merged({}, given))
    assert config.tokenizer.num_stages == 4
    assert config.tokenizer.layers == PRESETS["vtok-base"].layers


@pytest.mark.parametrize("preset", list(PRESETS))
def test_plan_of_the_preset_follows_the_number_of_stages(preset: str) -> None:
    def make(**model: object) -> TokenizerConfig:
        return TrainingConfig(preset=preset, model=model).tokenizer

    def plan(config: TokenizerConfig) -> tuple[int, ...]:
        return VideoTokenizer.from_config(config).quantizer.plan

    whole = PRESETS[preset]
    assert make(num_stages=whole.num_stages) == whole
    fewer = make(num_stages=3)
    assert fewer.num_stages == 3
    assert plan(fewer) == plan(whole)[: 3 * 9]
    for other in (make(num_stages=9), make(codebook_size=16), make(num_codebooks=2)):
        assert (other.stage_plan, other.bit_plan) == (None, None)
    assert make(num_stages=2, stage_plan=[0, 1]).stage_plan == (0, 1)
    assert make(num_stages=1, bit_plan=[0] * 9).bit_plan == (0,) * 9


def test_settings_are_toml_or_plain_text() -> None:
    settings = [
        "batch=8",
        "l1 = 0.5",
        "schedule=linear",
        'init="a=b"',
        "model.layers=[['fold', 8]]",
    ]
    assert parse_settings(settings) == {
        "batch": 8,
        "l1": 0.5,
        "schedule": "linear",
        "init": "a=b",
        "model": {"layers": [["fold", 8]]},
    }
    for bad in ("batch", "=3", "a.b.c=1", "ba tch=1"):
        with pytest.raises(OptionError, match="expected key=value"):
            parse_settings([bad])


def test_accelerator_table_overrides_other_keys(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("batch = 4\nsteps = 7\n[accelerator]\nbatch = 32\ncrop = 256\n")
    assert read_config(path) == {"batch": 4, "steps": 7}
    assert read_config(path, accelerated=True) == {"batch": 32, "steps": 7, "crop": 256}


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe", b"accelerator = 3"])
def test_invalid_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.toml"):
        read_config(path)
    with pytest.raises(InputError, match=r"missing\.toml: cannot be read"):
        read_config(tmp_path / "missing.toml")


def test_run_resumes_with_its_own_config_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begun = tiny_config(seed=3)
    with folder.opened(begun):
        (folder.states / "step-00000002.safetensors").touch()
    assert folder.resolve_config(None, {}, accelerated=False) == begun
    longer = folder.resolve_config(None, {"steps": 99, "keep": 7}, accelerated=False)
    assert (longer.steps, longer.keep, longer.model) == (99, 7, begun.model)
    with pytest.raises(UsageError, match=r"l1 \(0.25, now 0.5\), seed \(3, now 4\)"):
        folder.resolve_config(None, {"seed": 4, "l1": 0.5}, accelerated=False)


def test_only_free_keys_do_not_change_the_digest() -> None:
    others = {"steps": 9, "validate_every": 9, "save_every": 9, "keep": 9, "workers": 9,
              "cache": "x", "cache_gib": 9.0, "compile": True}  # fmt: skip
    assert set(others) == FREE
    assert config_digest(tiny_config(**others)) == config_digest(tiny_config())
    for key, value in {"batch": 3, "seed": 1, "ema": 0.5, "model": {}}.items():
        assert config_digest(tiny_config(**{key: value})) != config_digest(tiny_config())


def test_damaged_config_of_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("batch = [")
    with pytest.raises(UsageError, match="repair it, or choose another output folder"):
        RunFolder(tmp_path).resolve_config(None, {}, accelerated=False)
