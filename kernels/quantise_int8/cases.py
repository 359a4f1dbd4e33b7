"""What quantise_int8 is tested and timed with."""

from __future__ import annotations

import torch

from srgan_fast.kernels.cases import Arguments, Case, Draw


def _case(n: int, h: int, w: int, channels: int, inverse: float, scale: float = 1.0) -> Case:
    def make(draw: Draw) -> Arguments:
        return {"x": draw.normal(n, h, w, channels, scale=scale), "inverse": inverse}

    return Case(f"{n}x{h}x{w}, {channels} channels, values of {scale:g} by {inverse:g}", make)


def _half_steps(draw: Draw) -> Arguments:
    """Every half from below the least level to above the largest."""
    halves = torch.arange(-280, 280).view(1, 5, 7, 16) / 2
    return {"x": halves.to(draw.device, draw.dtype), "inverse": 1.0}


def _strided(draw: Draw) -> Arguments:
    return {"x": draw.normal(1, 5, 14, 16)[:, :, ::2], "inverse": 50.3}


CASES = (
    _case(1, 1, 1, 64, 40.0),
    _case(2, 9, 17, 64, 61.7),
    _case(1, 3, 5, 20, 0.613, scale=100.0),
    _case(1, 4, 3, 64, 31700.0, scale=1e-3),
    Case("1x5x7, 16 channels, half steps", _half_steps),
    Case("1x5x7, 16 channels, strided", _strided),
)

BENCH_CASES = {
    "64 channels": lambda height, width, batch, device, dtype: _case(batch, height, width, 64, 61.7).inputs(
        device, dtype
    )
}
