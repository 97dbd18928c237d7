"""Batched model calls of several threads: codes do not depend on the other clips of a batch."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from commands import tiny_model
from models import make_tokenizer

from vtok.models.load import LoadedTokenizer
from vtok.pipeline import _runtime
from vtok.pipeline._runtime import BatchedTokenizer, batched
from vtok.pipeline.codec import Decoder, Encoder
from vtok.pipeline.rate import PsnrMeter, psnr_per_frame


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    return tiny_model(tmp_path_factory.mktemp("model"))


def some_frames(seed: int, count: int = 70, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def codes(frames: np.ndarray, model: LoadedTokenizer) -> np.ndarray:
    chunks = [frames[start : start + 16] for start in range(0, len(frames), 16)]
    return np.concatenate([chunk.codes for chunk in Encoder(model).encode(chunks)], axis=2)


def test_codes_do_not_depend_on_batch(
    model: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_runtime, "WAIT_SECONDS", 0.2)
    shared = batched(model, 3)
    assert isinstance(shared.tokenizer, BatchedTokenizer)
    clips = [some_frames(seed, 30 + 20 * (seed % 2)) for seed in range(7)]
    with ThreadPoolExecutor(1) as pool:
        alone = list(pool.map(lambda clip: codes(clip, shared), clips))
    with ThreadPoolExecutor(7) as pool:
        together = list(pool.map(lambda clip: codes(clip, shared), clips))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    plain = [codes(clip, model) for clip in clips]
    assert np.mean([(a == b).mean() for a, b in zip(plain, alone, strict=True)]) > 0.99


def test_failing_clip_does_not_fail_others(
    model: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_runtime, "WAIT_SECONDS", 0.2)
    shared, real = batched(model, 3), model.tokenizer.encode_latents

    def encode_latents(video: torch.Tensor, *arguments: object, **named: object) -> torch.Tensor:
        if (video == 1).flatten(1).all(1).any():
            raise RuntimeError("no white clips")
        return real(video, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(model.tokenizer, "encode_latents", encode_latents)
    white = np.full((29, 16, 16, 3), 255, np.uint8)
    with ThreadPoolExecutor(3) as pool:
        good, bad, fine = (
            pool.submit(codes, clip, shared)
            for clip in (some_frames(0, 29), white, some_frames(1, 29))
        )
        with pytest.raises(RuntimeError, match="no white clips"):
            bad.result(timeout=60)
        assert good.result(timeout=60).shape == fine.result(timeout=60).shape


def test_models_with_growing_memory_are_not_batched(model: LoadedTokenizer) -> None:
    assert batched(model, 1) is model
    classic = LoadedTokenizer(
        make_tokenizer("classic"), model.info, torch.device("cpu"), torch.float32
    )
    assert batched(classic, 4) is classic


def test_psnr_meter_equals_decoded_psnr(model: LoadedTokenizer) -> None:
    frames = some_frames(0, 45)
    meter = PsnrMeter(model, (16, 16))
    chunks = list(Encoder(model, observers=[meter]).encode([frames[:20], frames[20:]]))
    shown = np.concatenate(list(Decoder(model, (16, 16)).decode(chunks)))
    assert meter.psnr == pytest.approx(float(psnr_per_frame(shown, frames).mean()))
