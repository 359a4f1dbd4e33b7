"""Initial weights: interpolation, and normalisation added to a network without."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from training import TINY, photos, small

from srgan_fast import weights
from srgan_fast.errors import UsageError
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.train.init import interpolating_init, normalised
from srgan_fast.train.trainer import Trainer

__all__ = ["photos", "small"]


def test_interpolating_init_starts_as_interpolation() -> None:
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(blocks=3, width=16, norm="none"))
    interpolating_init(network)
    lr = torch.rand(1, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.inference_mode():
        out = (network(lr) + 1) / 2
    want = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bilinear")
    assert (out - want)[..., 12:-12, 12:-12].abs().mean() < 0.1


def test_normalisation_added_changes_nothing_in_evaluation() -> None:
    torch.manual_seed(0)
    plain = Generator(GeneratorConfig(blocks=2, width=8, norm="none"))
    batches = [torch.rand(4, 3, 12, 12) for _ in range(3)]
    batched = normalised(plain, GeneratorConfig(blocks=2, width=8), batches)
    lr = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        assert (batched.eval()(lr) - plain.eval()(lr)).abs().max() < 1e-5
        # In training a batch is normalised by itself: near the same for a batch like those.
        assert (batched.train()(batches[0]) - plain(batches[0])).abs().mean() < 0.02


@pytest.mark.usefixtures("small")
def test_srgan_starts_from_a_network_without_normalisation(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(TINY, stage="srgan")
    start = tmp_path / "plain.safetensors"
    weights.save(start, Generator(dataclasses.replace(config.generator, norm="none")), name="plain", recipe={})
    config = dataclasses.replace(config, steps=2)
    path = Trainer(config, photos, tmp_path / "run", initial=start).run()
    assert "batch normalisation" in caplog.text
    recipe = weights.load(path).info.recipe
    assert recipe["initial"] == {"name": "plain", "digest": weights.load(start).info.digest}
    # Not in its normalisation, which would be no obstacle.
    said = r"--init .* differs in blocks \(1 there, 16 here\), width \(4 there, 64 here\); give"
    with pytest.raises(UsageError, match=said):
        Trainer(dataclasses.replace(config, generator=GeneratorConfig()), photos, tmp_path / "other", initial=start)
