"""pytest-benchmark: training steps, plain and the trainer's own. `make bench`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from srgan_fast.bench import train
from srgan_fast.bench.device import float32, synchronise
from srgan_fast.errors import BackendUnavailable

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = tuple(train.SIZES) if DEVICE == "cuda" else ("small",)


# What runs by itself where it runs: torch.compile is a matter of minutes.
IMPLS = ["plain fp32", "eager fp32", "eager bf16", "graph bf16", "graph-kernels bf16"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", train.STAGES)
def test_step(benchmark: Any, stage: str, size: str, impl: str) -> None:
    """One step on a batch that lies on the device."""
    name, _, precision = impl.partition(" ")
    start = train.begin(stage, size, DEVICE)
    benchmark.group = f"{stage} {size}"
    with float32(DEVICE):
        try:
            step = train.turns(train.makers(start)[name, precision](), start)
        except BackendUnavailable as error:
            pytest.skip(str(error))

        def whole() -> None:
            step()
            synchronise(DEVICE)

        benchmark(whole)
