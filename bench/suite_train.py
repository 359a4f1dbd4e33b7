"""pytest-benchmark: training steps, plain and the trainer's own. `make bench`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from srgan_fast.bench import train
from srgan_fast.bench.device import float32, synchronise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = tuple(train.SIZES) if DEVICE == "cuda" else ("small",)


@pytest.mark.parametrize("impl", ["plain fp32", "eager fp32", "eager bf16"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", train.STAGES)
def test_step(benchmark: Any, stage: str, size: str, impl: str) -> None:
    """One step on a batch that lies on the device."""
    name, _, precision = impl.partition(" ")
    step = train.steps(stage, size, DEVICE)[name, precision]()
    benchmark.group = f"{stage} {size}"

    def whole() -> None:
        step()
        synchronise(DEVICE)

    with float32(DEVICE):
        benchmark(whole)
