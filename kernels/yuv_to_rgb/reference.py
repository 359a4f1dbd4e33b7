"""yuv_to_rgb in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels.chroma import SITINGS, ToRGB, padded, rounded, wide
from srgan_fast.kernels.contract import LEVELS


def yuv_to_rgb(
    y: Tensor, u: Tensor | None, v: Tensor | None, matrix: str, full: bool, depth: int, siting: str, dtype: torch.dtype
) -> Tensor:
    """See the package."""
    found = channels(y, u, v, matrix, full, depth, siting, dtype, 0, y.shape[0])
    return torch.stack(found, -1).to(dtype)


def channels(
    y: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    matrix: str,
    full: bool,
    depth: int,
    siting: str,
    dtype: torch.dtype,
    first: int,
    end: int,
) -> list[Tensor]:
    """Red, green and blue of the rows of a frame from `first`, which is even, to before `end`; yet to be cast."""
    top = LEVELS.get(dtype, 1)
    by = ToRGB.of(matrix, full, depth, top)
    luma = (wide(y[first:end], dtype) - by.y_offset).mul_(by.luma)
    if u is None or v is None:
        return [rounded(luma.clamp_(0, top), dtype)] * 3
    pb, pr = (_enlarged(c, y.shape[0], y.shape[1], siting, dtype, by.c_offset, first, end) for c in (u, v))
    red, blue = (pr * by.v_to_red).add_(luma), (pb * by.u_to_blue).add_(luma)
    green = luma.add_(pb.mul_(by.u_to_green)).add_(pr.mul_(by.v_to_green))
    return [rounded(c.clamp_(0, top), dtype) for c in (red, green, blue)]


def _enlarged(
    c: Tensor, height: int, width: int, siting: str, dtype: torch.dtype, offset: float, first: int, end: int
) -> Tensor:
    """Some rows of chroma, from its offset, at the places of luma: linear between its own."""
    across, down = SITINGS[siting]
    fewer = c.shape[0] != height
    # A row more on both sides, if there is one: what lies between is interpolated.
    start = max(first // 2 - 1, 0) if fewer else first
    c = wide(c[start : (end + 1) // 2 + 1 if fewer else end], dtype) - offset
    if c.shape[1] != width:
        c = _doubled(c, 1, across)[:, :width]
    return _doubled(c, 0, down)[first - 2 * start : end - 2 * start] if fewer else c


def _doubled(c: Tensor, dim: int, on_first: bool) -> Tensor:
    larger = c.new_empty([n * (1 + (i == dim)) for i, n in enumerate(c.shape)])
    even, odd = (larger.movedim(dim, 0)[i::2] for i in (0, 1))
    around, c = padded(c, dim).movedim(dim, 0), c.movedim(dim, 0)
    if on_first:
        even.copy_(c)
        torch.mul(c + around[2:], 0.5, out=odd)
    else:
        near, far = 0.75 * c, 0.25 * around
        torch.add(near, far[:-2], out=even)
        torch.add(near, far[2:], out=odd)
    return larger
