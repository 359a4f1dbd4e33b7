"""What head is tested and timed with."""

from __future__ import annotations

import torch

from srgan_fast.kernels.cases import Arguments, Case, Draw
from srgan_fast.kernels.contract import LEVELS
from srgan_fast.kernels.launch import power_of_two


def _case(n: int, h: int, w: int, size: int, cout: int, scale: float = 1.0) -> Case:
    def make(draw: Draw) -> Arguments:
        depth = max(16, power_of_two(4 * size))
        weight = draw.normal(size, depth, cout, scale=(3 * size * size) ** -0.5)
        weight[:, 4 * size :] = 0
        x = draw.normal(n, h, w, 4, scale=scale)
        x[..., 3] = 0
        return {"x": x, "weight": weight, "bias": draw.vector(cout, 0.5), "slopes": draw.slopes(cout)}

    said = f"{n}x{h}x{w}, {size}x{size} to {cout}"
    return Case(said if scale == 1.0 else f"{said}, values of {scale:g}", make)


def _frames(n: int, h: int, w: int, frames: torch.dtype, *, size: int = 9, cout: int = 64) -> Case:
    """Frames as they come, with an offset that shows where zeros are put around them."""

    def make(draw: Draw) -> Arguments:
        arguments = _case(n, h, w, size, cout).make(draw)
        levels = LEVELS.get(frames, 1)
        arguments["x"] = (draw.pixels if frames in LEVELS else draw.normal)(n, h, w, 3, dtype=frames)
        arguments["gain"] = (draw.vector(3).abs() + 1) / levels
        arguments["offset"] = draw.vector(3) - 2
        return arguments

    return Case(f"{n}x{h}x{w}, {str(frames).removeprefix('torch.')}, {size}x{size} to {cout}", make)


def _strided(draw: Draw) -> Arguments:
    whole = _case(1, 8, 6, 9, 32).make(draw)
    return {
        "x": whole["x"].transpose(1, 2),
        "weight": whole["weight"][..., ::2],
        "bias": whole["bias"][::2],
        "slopes": whole["slopes"][::2],
    }


def _strided_frames(draw: Draw) -> Arguments:
    whole = _frames(1, 6, 4, torch.uint8, size=7).make(draw)
    return {**whole, "x": whole["x"].transpose(1, 2), "gain": whole["gain"].repeat_interleave(2)[::2]}


CASES = (
    _case(1, 1, 1, 9, 64),
    _case(2, 9, 17, 9, 64),
    _case(1, 5, 20, 3, 64),
    _case(1, 4, 3, 5, 16),
    _case(1, 7, 6, 9, 36),
    _case(1, 3, 4, 9, 128, scale=50.0),
    _frames(1, 1, 1, torch.uint8),
    _frames(2, 11, 13, torch.uint8),
    _frames(1, 5, 9, torch.uint16),
    _frames(1, 6, 5, torch.float32, size=5),
    _frames(1, 3, 5, torch.float16, size=3, cout=16),
    Case("1x4x6, uint8, 7x7 to 64, strided", _strided_frames),
    Case("1x6x8, 9x9 to 16, strided", _strided),
)


def _prepared(height: int, width: int, batch: int, device: str, dtype: torch.dtype) -> Arguments:
    return _case(batch, height, width, 9, 64).inputs(device, dtype)


def _first(height: int, width: int, batch: int, device: str, dtype: torch.dtype) -> Arguments:
    return _frames(batch, height, width, torch.uint8).inputs(device, dtype)


BENCH_CASES = {"9x9 to 64": _prepared, "9x9 to 64, uint8": _first}
