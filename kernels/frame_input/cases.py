"""What frame_input is tested and timed with."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels.cases import Arguments, Case, Draw


def _arguments(draw: Draw, frames: Tensor, levels: int) -> Arguments:
    low, high = draw.vector(3), draw.vector(3) + 2
    return {"frames": frames, "gain": (high - low) / levels, "offset": low, "dtype": draw.dtype}


def _case(n: int, h: int, w: int, dtype: torch.dtype) -> Case:
    def make(draw: Draw) -> Arguments:
        if dtype.is_floating_point:
            return _arguments(draw, draw.normal(n, h, w, 3, dtype=dtype), 1)
        return _arguments(draw, draw.pixels(n, h, w, 3, dtype=dtype), torch.iinfo(dtype).max)

    return Case(f"{n}x{h}x{w}, {str(dtype).removeprefix('torch.')}", make)


CASES = (
    _case(1, 1, 1, torch.uint8),
    _case(2, 13, 7, torch.uint8),
    _case(1, 5, 300, torch.uint16),
    _case(1, 3, 5, torch.float32),
    _case(1, 3, 5, torch.float16),
    Case(
        "1x6x4, uint8, strided",
        lambda draw: _arguments(draw, draw.pixels(1, 4, 6, 4, dtype=torch.uint8)[..., 1:].transpose(1, 2), 255),
    ),
)


def _frame(height: int, width: int, batch: int, device: str, dtype: torch.dtype) -> Arguments:
    return _case(batch, height, width, torch.uint8).inputs(device, dtype)


BENCH_CASES = {"uint8": _frame}
