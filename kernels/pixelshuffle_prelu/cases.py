"""What pixelshuffle_prelu is tested and timed with."""

from __future__ import annotations

import torch

from srgan_fast.kernels.cases import Arguments, Case, Draw


def _case(n: int, h: int, w: int, channels: int, r: int = 2, scale: float = 1.0) -> Case:
    def make(draw: Draw) -> Arguments:
        return {"x": draw.normal(n, h, w, channels * r * r, scale=scale), "slopes": draw.slopes(channels), "r": r}

    said = f"{n}x{h}x{w}, {channels} channels, x{r}"
    return Case(said if scale == 1.0 else f"{said}, values of {scale:g}", make)


CASES = (
    _case(1, 1, 1, 64),
    _case(2, 9, 7, 64),
    _case(1, 3, 5, 20),
    _case(1, 2, 3, 16, r=3),
    _case(1, 4, 3, 128, scale=1e3),
    # PReLU alone.
    _case(2, 5, 7, 36, r=1),
    Case(
        "1x5x3, 16 channels, x2, strided",
        lambda draw: {"x": draw.normal(1, 3, 5, 128)[..., ::2].transpose(1, 2), "slopes": draw.slopes(32)[::2], "r": 2},
    ),
)


def _stage(height: int, width: int, batch: int, device: str, dtype: torch.dtype) -> Arguments:
    return _case(batch, height, width, 64).inputs(device, dtype)


BENCH_CASES = {"64 channels, x2": _stage}
