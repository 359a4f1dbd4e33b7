"""Training steps that a busy machine makes in a moment, for tests of what times them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch

from srgan_fast.bench import ceiling, train
from srgan_fast.features import VGG19
from srgan_fast.model import Discriminator, GeneratorConfig


@functools.cache
def small_product(device: str, precision: str) -> dict[str, Any]:
    """`ceiling.product` of small matrices: a CPU without bfloat16 takes seconds for one of the real ones."""
    side = 64
    a, b = (torch.rand(side, side, device=device).to(ceiling._DTYPES[precision]) for _ in range(2))
    times = ceiling._timed(lambda: torch.mm(a, b), device)
    return ceiling._record("matmul", {"dtype": precision, "serves": "train", "latency_ms": times, "flops": 2 * side**3})


def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow networks on two crops, few photographs to cut them from, and a ceiling that is soon measured."""
    monkeypatch.setattr(ceiling, "product", small_product)
    monkeypatch.setitem(train.SIZES, "small", (2, 32))
    monkeypatch.setattr(train, "Discriminator", functools.partial(Discriminator, width=8))
    monkeypatch.setattr(train, "VGG19", lambda *_: VGG19(2, 2))
    monkeypatch.setattr(train, "_SIDE", 64)
    monkeypatch.setattr(train, "_STEPS", 100)
    for stage in train.STAGES:
        small = dataclasses.replace(train.PRESETS[stage], generator=GeneratorConfig(blocks=1, width=8))
        monkeypatch.setitem(train.PRESETS, stage, small)


@pytest.fixture
def small(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks on one thread: there is nothing to share out, and threads that wait for each other take longer."""
    small_networks(monkeypatch)
