"""pytest-benchmark: frames, by every backend that runs here and by plain PyTorch. `make bench`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from srgan_fast.bench import frame
from srgan_fast.bench.device import synchronise
from srgan_fast.weights import Model, load

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = frame.SIZES if DEVICE == "cuda" else ((64, 64), (128, 128))
BATCHES = frame.BATCHES if DEVICE == "cuda" else (1,)


@pytest.fixture(scope="module")
def model() -> Model:
    """The bundled network."""
    return load("srresnet_x4")


@pytest.fixture(params=[f"{w}x{h}x{n}" for w, h in SIZES for n in BATCHES])
def frames(request: Any) -> torch.Tensor:
    """Random uint8 frames [n, h, w, 3] on the device."""
    width, height, count = (int(part) for part in request.param.split("x"))
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=random).to(DEVICE)


@pytest.mark.parametrize("name", [" ".join(key) for key in frame.makers(load("srresnet_x4"), torch.zeros(0), DEVICE)])
def test_frame(benchmark: Any, model: Model, frames: torch.Tensor, name: str) -> None:
    """One call, from frames on the device to results on the device."""
    impl, _, precision = name.partition(" ")
    run = frame.makers(model, frames, DEVICE)[impl, precision]()
    benchmark.group = "x".join(str(size) for size in frames.shape[:3])

    def whole() -> None:
        run()
        synchronise(DEVICE)

    benchmark(whole)
