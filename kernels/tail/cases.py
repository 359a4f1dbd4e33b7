"""What tail is tested and timed with."""

from __future__ import annotations

import torch

from srgan_fast.kernels.cases import Arguments, Case, Draw


def _case(
    n: int,
    h: int,
    w: int,
    cin: int,
    *,
    size: int = 5,
    r: int = 2,
    dtype: torch.dtype = torch.float32,
    tanh: bool = False,
    base: bool = False,
    scale: float = 1.0,
) -> Case:
    def make(draw: Draw) -> Arguments:
        arguments: Arguments = {
            "x": draw.normal(n, h, w, cin, scale=scale),
            "weight": draw.weight(size * size, cin, 3 * r * r),
            "bias": draw.vector(3 * r * r, 0.2),
            "gain": draw.vector(3).abs() * 0.2 + 0.05,
            "offset": draw.vector(3) * 0.1 + 0.5,
            "r": r,
            "dtype": dtype,
            "tanh": tanh,
        }
        if base:
            arguments["base"] = draw.normal(n, h, w, 4)
        return arguments

    said = f"{n}x{h}x{w}x{cin}, {size}x{size}, x{r}, {str(dtype).removeprefix('torch.')}"
    said += ", tanh" * tanh + ", base" * base + (f", values of {scale:g}" if scale != 1 else "")
    return Case(said, make)


def _strided(draw: Draw) -> Arguments:
    whole = _case(1, 6, 8, 32, base=True).make(draw)
    return {
        **whole,
        "x": whole["x"].transpose(1, 2)[..., ::2],
        "weight": whole["weight"][:, ::2],
        "bias": draw.vector(24)[::2],
        "gain": whole["gain"].repeat_interleave(2)[::2],
        "offset": whole["offset"].repeat_interleave(2)[::2],
        "base": whole["base"].transpose(1, 2),
    }


CASES = (
    _case(1, 1, 1, 256),
    _case(1, 9, 17, 256, tanh=True),
    _case(2, 6, 5, 64),
    _case(1, 4, 7, 64, size=3, r=4, base=True),
    _case(1, 3, 4, 80, size=5, tanh=True),
    _case(1, 5, 4, 32, size=1, r=8),
    _case(1, 4, 6, 64, tanh=True, scale=300.0),
    _case(1, 5, 7, 64, dtype=torch.uint8),
    _case(1, 5, 7, 64, dtype=torch.uint16, tanh=True),
    Case("1x8x6x16, 5x5, x2, float32, base, strided", _strided),
)


def _last(height: int, width: int, batch: int, device: str, dtype: torch.dtype) -> Arguments:
    # Of a LR frame of this size: the maps before the last shuffle of a x4 network.
    return _case(batch, 2 * height, 2 * width, 256, dtype=torch.uint8).inputs(device, dtype)


BENCH_CASES = {"5x5 from 256, uint8": _last}
