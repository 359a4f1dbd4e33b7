"""Training data: draws of old recipes, one batch however the pixels are held, packs that are whole or refused."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.model import GeneratorConfig
from srgan_fast.resize import gaussian_down, imresize_down
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.data import Batches
from srgan_fast.train.store import ImageStore

TINY = TrainConfig(generator=GeneratorConfig(blocks=1, width=4), crop=32, batch=5, steps=60, precision="fp32")


def noise(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def config_of(scale: int, degradation: str = "bicubic", **changes: int) -> TrainConfig:
    shape = GeneratorConfig(scale=scale, blocks=1, width=4)
    return dataclasses.replace(TINY, generator=shape, degradation=degradation, **changes)


def literal_batch(
    images: list[Tensor], config: TrainConfig, step: int, lows: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """A batch crop by crop, as the first recipes were trained: nothing here may ever change."""
    scale = config.generator.scale
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    rounds = -(-config.batch // len(images))
    order = torch.cat([torch.randperm(len(images), generator=rng) for _ in range(rounds)])[: config.batch]
    lr, hr = [], []
    for index in order.tolist():
        draw = torch.rand(3, generator=rng)
        small = images[index] if lows is None else lows[index]
        size = config.crop if lows is None else config.crop // scale
        y = int(draw[0] * (small.shape[1] - size + 1))
        x = int(draw[1] * (small.shape[2] - size + 1))

        def turned(crop: Tensor, turn: int = int(draw[2] * 8)) -> Tensor:
            crop = crop.rot90(turn % 4, (1, 2))
            return crop.flip(2) if turn >= 4 else crop

        if lows is not None:
            lr.append(turned(small[:, y : y + size, x : x + size]))
            y, x = y * scale, x * scale
            hr.append(turned(images[index][:, y : y + config.crop, x : x + config.crop]))
            continue
        margin = 2 * scale
        padded = F.pad(images[index][None].float(), (margin,) * 4, mode="replicate")[0].to(torch.uint8)
        wide = turned(padded[:, y : y + config.crop + 2 * margin, x : x + config.crop + 2 * margin])
        if config.degradation == "gaussian":
            lr.append(gaussian_down(wide, scale, config.blur_sigma)[:, 2:-2, 2:-2])
        else:
            lr.append(imresize_down(wide, scale)[:, 2:-2, 2:-2])
        hr.append(wide[:, margin:-margin, margin:-margin])
    return torch.stack(lr) / 255.0, torch.stack(hr) / 127.5 - 1.0


def digest_of(*tensors: Tensor) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


SIZES = ((40, 61), (32, 32), (57, 33))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        config_of(2),
        config_of(4),
        config_of(8),
        config_of(4, seed=2**40 - 1),
        config_of(4, "gaussian"),
        config_of(4, batch=1),
    ],
    ids=lambda config: f"x{config.generator.scale}-{config.degradation}-{config.batch}-{config.seed}",
)
def test_batches_are_those_of_the_first_recipes(config: TrainConfig, resident: bool) -> None:
    images = noise(*SIZES)
    batches = Batches(ImageStore.of(images), config, resident=resident)
    for step in (0, 1, 2, 59, 7):
        for got, wanted in zip(batches(step), literal_batch(images, config, step), strict=True):
            assert torch.equal(got, wanted)
    batches.close()


@pytest.mark.parametrize("resident", [True, False])
def test_pairs_are_those_of_the_first_recipes(resident: bool) -> None:
    config = config_of(2, "pairs")
    lows = noise((16, 19), (30, 17), seed=1)
    images = noise((32, 38), (60, 34))
    batches = Batches(ImageStore.of(images, lows), config, resident=resident)
    for step in range(6):
        for got, wanted in zip(batches(step), literal_batch(images, config, step, lows), strict=True):
            assert torch.equal(got, wanted)
    batches.close()
