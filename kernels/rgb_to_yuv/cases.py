"""What rgb_to_yuv is tested and timed with."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels.cases import Arguments, Case, Draw


def _pixels(draw: Draw, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Floats also beyond [0, 1]."""
    if dtype.is_floating_point:
        return (draw.normal(height, width, 3, dtype=torch.float32) * 0.4 + 0.5).to(dtype)
    return draw.pixels(height, width, 3, dtype=dtype)


def _case(
    h: int,
    w: int,
    subsampling: str,
    siting: str,
    depth: int = 8,
    pixels: torch.dtype | None = torch.uint8,
    result: torch.dtype | None = torch.uint8,
    *,
    matrix: str = "bt709",
    full: bool = False,
    strided: bool = False,
    extremes: bool = False,
) -> Case:
    """None is the dtype in which a case is asked for."""

    def make(draw: Draw) -> Arguments:
        kind = pixels or draw.dtype
        rgb = _pixels(draw, w, h, kind).transpose(0, 1) if strided else _pixels(draw, h, w, kind)
        if extremes:
            rgb = torch.where(rgb > 127, 255, 0).to(kind)
        named = {"matrix": matrix, "full": full, "depth": depth, "subsampling": subsampling, "siting": siting}
        return {"rgb": rgb, **named, "dtype": result or draw.dtype}

    kinds = [str(kind).removeprefix("torch.") if kind else "floats" for kind in (pixels, result)]
    about = [matrix, "full" if full else "limited", *["strided"] * strided, *["extremes"] * extremes]
    return Case(f"{h}x{w}, {subsampling} {siting}, {depth} bits, {' to '.join(kinds)}, {', '.join(about)}", make)


CASES = (
    _case(1, 1, "420", "left"),
    _case(7, 9, "420", "left"),
    _case(6, 8, "420", "centre", matrix="bt601", full=True),
    _case(9, 67, "420", "topleft", 10, torch.uint16, torch.uint16, matrix="bt2020"),
    _case(3, 7, "422", "centre", 12, torch.uint16, torch.uint16),
    _case(4, 5, "422", "left", result=None),
    _case(5, 3, "444", "left", 16, torch.uint16, torch.uint16, full=True),
    _case(3, 5, "400", "left"),
    _case(5, 6, "420", "left", pixels=None, result=None),
    _case(1, 8, "420", "centre", 10, None, torch.uint16),
    _case(3, 8, "444", "left", full=True, extremes=True),
    _case(6, 7, "420", "left", strided=True),
)


def _frame(depth: int) -> object:
    kind = torch.uint8 if depth == 8 else torch.uint16

    def make(height: int, width: int, batch: int, device: str, dtype: torch.dtype) -> Arguments:
        """One frame, four times as large as what it was made of: it has no batches."""
        return _case(4 * height, 4 * width, "420", "left", depth, kind, kind).inputs(device, dtype)

    return make


BENCH_CASES = {"4:2:0, 8 bits": _frame(8), "4:2:0, 10 bits": _frame(10)}
