"""Small training steps for tests: networks, batches, and whether two steps are in the same state."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from srgan_fast.model import Discriminator, Generator, GeneratorConfig
from srgan_fast.train import losses
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.graph_step import GraphStep
from srgan_fast.train.step import EagerStep

TINY = TrainConfig(
    generator=GeneratorConfig(blocks=1, width=4),
    crop=32,
    batch=2,
    steps=60,
    warmup=10,
    learning_rate=1e-3,
    final_learning_rate=1e-5,
    decay="cosine",
    precision="fp32",
)
GAN = dataclasses.replace(TINY, stage="srgan", clip=0.05)


def networks(config: TrainConfig) -> tuple[Generator, Discriminator | None]:
    torch.manual_seed(0)
    return Generator(config.generator), Discriminator(width=4) if config.stage == "srgan" else None


def step_of(
    kind: Callable[..., EagerStep], config: TrainConfig, content: losses.Content = losses.mse, **options: Any
) -> Any:
    generator, discriminator = networks(config)
    return kind(generator, content, config, discriminator, **options)


def batch(number: int, count: int = 2, size: int = 8) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(number)
    lr = torch.rand(count, 3, size, size, generator=random)
    return lr, torch.rand(count, 3, 4 * size, 4 * size, generator=random) * 2 - 1


def spoil(step: EagerStep) -> None:
    """Put NaN wherever a captured step may not rely on what is there."""
    for one in step.captured.values() if isinstance(step, GraphStep) else ():
        for tensor in (one.lr, one.hr, *one.values, *one.gradients):
            tensor.detach().fill_(math.nan)


def run(step: EagerStep, steps: range) -> list[dict[str, Tensor]]:
    """Its terms over some steps, four of them with batches of another shape."""
    told = []
    for number in steps:
        count, size = (3, 9) if 20 <= number < 24 else (2, 8)
        told.append(step(*batch(number, count, size), number))
        spoil(step)
    return told


def everything(step: EagerStep) -> dict[str, Tensor]:
    found = {}
    for name, part in copy.deepcopy(step.state()).items():
        leaves = torch.utils._pytree.tree_leaves_with_path(part)
        found |= {f"{name}{torch.utils._pytree.keystr(path)}": leaf for path, leaf in leaves}
    # The rate in the groups is no state: every step looks it up.
    return {name: value for name, value in found.items() if isinstance(value, Tensor) and "groups" not in name}


def assert_same(mine: Any, others: Any) -> None:
    """To the bit; a NaN is like nothing."""
    mine, others = (one if isinstance(one, list) else [everything(one)] for one in (mine, others))
    assert len(mine) == len(others)
    for here, there in zip(mine, others, strict=True):
        assert here.keys() == there.keys()
        for name, value in here.items():
            assert torch.equal(value, there[name]), name
