"""rgb_to_yuv in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels.chroma import SITINGS, SUBSAMPLINGS, ToYUV, padded, rounded, wide
from srgan_fast.kernels.contract import LEVELS


def rgb_to_yuv(
    rgb: Tensor, matrix: str, full: bool, depth: int, subsampling: str, siting: str, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """See the package."""
    found = planes(rgb, matrix, full, depth, subsampling, siting, dtype, 0, rgb.shape[0])
    return tuple(plane.to(dtype) for plane in found)


def planes(
    rgb: Tensor,
    matrix: str,
    full: bool,
    depth: int,
    subsampling: str,
    siting: str,
    dtype: torch.dtype,
    first: int,
    end: int,
) -> list[Tensor]:
    """Planes of the rows of a frame from `first`, which is even, to before `end`; yet to be cast."""
    by = ToYUV.of(matrix, full, depth, LEVELS.get(rgb.dtype, 1))
    less = SUBSAMPLINGS[subsampling]
    # With a row more on both sides where chroma needs it; outside the frame the border goes on.
    halo = int(subsampling == "420")
    above, below = halo * (first == 0), halo * (end == rgb.shape[0])
    colours = [wide(rgb[first - halo + above : end + halo, :, i], dtype) for i in range(3)]
    if rgb.is_floating_point():
        colours = [colour.clamp(0, 1) for colour in colours]
    if above or below:
        colours = [torch.cat((*[c[:1]] * above, c, *[c[-1:]] * below)) for c in colours]
    found = [_sum([colour[halo : halo + end - first] for colour in colours], by.y, by.y_offset)]
    if less is not None:
        across, down = SITINGS[siting]
        if less[0] == 2:
            colours = [_halved(c, 0, down) for c in colours]
        if less[1] == 2:
            colours = [_halved(padded(c, 1), 1, across) for c in colours]
        found += [_sum(colours, weights, by.c_offset) for weights in (by.u, by.v)]
    if not dtype.is_floating_point:
        found = [plane.clamp_(0, (1 << depth) - 1) for plane in found]
    return [rounded(plane, dtype) for plane in found]


def _sum(colours: list[Tensor], weights: tuple[float, float, float], offset: float) -> Tensor:
    red, green, blue = colours
    total = (red * weights[0]).add_(green * weights[1])
    return total.add_(blue * weights[2]).add_(offset)


def _halved(c: Tensor, dim: int, on_first: bool) -> Tensor:
    """Every second value along a dimension, smoothed, of values with one more at both ends."""
    c = c.movedim(dim, 0)
    at, after = c[1:-1:2], c[2::2]
    half = (c[:-2:2] + after).mul_(0.25).add_(at * 0.5) if on_first else (at + after).mul_(0.5)
    return half.movedim(0, dim)
