"""What conv3x3_shuffle is tested and timed with."""

from __future__ import annotations

import torch

from srgan_fast.kernels.cases import Arguments, Case, Draw


def _case(n: int, h: int, w: int, cin: int, channels: int, r: int = 2, scale: float = 1.0) -> Case:
    def make(draw: Draw) -> Arguments:
        return {
            "x": draw.normal(n, h, w, cin, scale=scale),
            "weight": draw.weight(9, cin, r * r * channels),
            "bias": draw.vector(r * r * channels, 0.5),
            "slopes": draw.slopes(channels),
            "r": r,
        }

    said = f"{n}x{h}x{w}, {cin} to {channels}, x{r}"
    return Case(said if scale == 1.0 else f"{said}, values of {scale:g}", make)


def _strided(draw: Draw) -> Arguments:
    return {
        "x": draw.normal(1, 5, 14, 16)[:, :, ::2],
        "weight": draw.weight(9, 16, 128)[..., ::2],
        "bias": draw.vector(128)[::2],
        "slopes": draw.slopes(32)[::2],
        "r": 2,
    }


CASES = (
    _case(1, 1, 1, 64, 64),
    _case(1, 9, 17, 64, 64),
    _case(2, 3, 5, 16, 16),
    _case(1, 4, 3, 20, 24),
    _case(1, 3, 4, 32, 16, r=3),
    _case(1, 2, 5, 64, 128),
    _case(1, 4, 4, 64, 64, scale=100.0),
    Case("1x5x7, 16 to 16, x2, strided", _strided),
)


def _stage(height: int, width: int, batch: int, device: str, dtype: torch.dtype) -> Arguments:
    return _case(batch, height, width, 64, 64).inputs(device, dtype)


BENCH_CASES = {"64 to 64, x2": _stage}
