"""What yuv_to_rgb is tested and timed with."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels.cases import Arguments, Case, Draw
from srgan_fast.kernels.chroma import shapes


def code_values(draw: Draw, height: int, width: int, depth: int, dtype: torch.dtype) -> Tensor:
    """A plane over the whole range of its depth; as floats also between and a little beyond the codes."""
    top = (1 << depth) - 1
    if dtype.is_floating_point:
        return (draw.normal(height, width, dtype=torch.float32) * top / 3 + top / 2).to(dtype)
    return (draw.pixels(height, width, dtype=torch.uint16).to(torch.int32) * top // 65535).to(dtype)


def _case(
    h: int,
    w: int,
    subsampling: str,
    siting: str,
    depth: int = 8,
    planes: torch.dtype | None = torch.uint8,
    result: torch.dtype | None = torch.uint8,
    *,
    matrix: str = "bt709",
    full: bool = False,
    strided: bool = False,
) -> Case:
    """None is the dtype in which a case is asked for."""

    def make(draw: Draw) -> Arguments:
        kind = planes or draw.dtype
        # As a decoder gives them: rows end before the next begins.
        found = [
            code_values(draw, rows, columns + 5, depth, kind)[:, 2:-3]
            if strided
            else code_values(draw, rows, columns, depth, kind)
            for rows, columns in shapes(h, w, subsampling)
        ]
        y, u, v = found if len(found) == 3 else (*found, None, None)
        named = {"matrix": matrix, "full": full, "depth": depth, "siting": siting, "dtype": result or draw.dtype}
        return {"y": y, "u": u, "v": v, **named}

    kinds = [str(kind).removeprefix("torch.") if kind else "floats" for kind in (planes, result)]
    about = [matrix, "full" if full else "limited", *["strided"] * strided]
    return Case(f"{h}x{w}, {subsampling} {siting}, {depth} bits, {' to '.join(kinds)}, {', '.join(about)}", make)


CASES = (
    _case(1, 1, "420", "left"),
    _case(7, 9, "420", "left"),
    _case(6, 8, "420", "centre", matrix="bt601", full=True),
    _case(9, 67, "420", "topleft", 10, torch.uint16, torch.uint16, matrix="bt2020"),
    _case(3, 7, "422", "centre", 12, torch.uint16, torch.uint16),
    _case(4, 5, "422", "left", result=None),
    _case(5, 3, "444", "left", 16, torch.uint16, torch.uint16, full=True),
    _case(3, 5, "400", "left", strided=True),
    _case(5, 6, "420", "left", planes=None, result=None),
    _case(1, 8, "420", "centre", 10, None, torch.uint8),
    _case(6, 7, "420", "left", strided=True),
)


def _frame(subsampling: str, depth: int) -> object:
    kind = torch.uint8 if depth == 8 else torch.uint16

    def make(height: int, width: int, batch: int, device: str, dtype: torch.dtype) -> Arguments:
        """One frame: it has no batches."""
        return _case(height, width, subsampling, "left", depth, kind, kind).inputs(device, dtype)

    return make


BENCH_CASES = {"4:2:0, 8 bits": _frame("420", 8), "4:2:0, 10 bits": _frame("420", 10)}
