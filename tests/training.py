"""Runs for tests: small photographs, a small recipe, networks that take milliseconds a step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from srgan_fast import weights
from srgan_fast.model import Discriminator, Generator, GeneratorConfig
from srgan_fast.train import report
from srgan_fast.train import trainer as trainer_module
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.log import read_events, read_steps

TINY = TrainConfig(generator=GeneratorConfig(blocks=1, width=4), crop=32, batch=2, steps=60, precision="fp32")


@pytest.fixture
def small(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, a discriminator of 4 feature maps, and no picture in the report: it would take most of the time."""
    monkeypatch.setattr(report, "draw", lambda *_: None)
    monkeypatch.setattr(trainer_module, "Discriminator", lambda: Discriminator(width=4))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs of unlike sizes, one that is too small and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
        coarse.resize((60 + index, 48)).save(folder / f"{index}.png")
    Image.new("RGB", (20, 90)).save(folder / "narrow.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nonsense")
    return folder


def start_of(folder: Path, config: TrainConfig) -> Path:
    """Weights that an srgan run can start from."""
    path = folder / "start.safetensors"
    torch.manual_seed(3)
    weights.save(path, Generator(config.generator), name="start", recipe={})
    return path


def read_log(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The steps of a run that count, and its events."""
    return list(read_steps(folder)), read_events(folder)


def noise(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """Images of some heights and widths, as training stores hold them."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def config_of(scale: int, degradation: str = "bicubic", **changes: Any) -> TrainConfig:
    """A recipe of a scale, whose batch no power of two divides."""
    shape = GeneratorConfig(scale=scale, blocks=1, width=4)
    return dataclasses.replace(TINY, **{"batch": 5, "generator": shape, "degradation": degradation, **changes})
