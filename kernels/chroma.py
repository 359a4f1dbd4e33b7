"""Video colour: the standards' matrices, code values and chroma positions, shared by yuv_to_rgb and rgb_to_yuv."""

from __future__ import annotations

import torch
from torch import Tensor

# Weights of red and blue in luma: ITU-R BT.601, BT.709 and BT.2020 (non-constant luminance), section "signal format".
LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}

# Where chroma lies in a 4:2:0 or 4:2:2 block, ITU-T H.273 figure 10: between the two luma columns and rows, or on the
# first of them. (across, down) is whether it lies on the first.
SITINGS = {"left": (True, False), "centre": (False, False), "topleft": (True, True)}


def levels(full: bool, depth: int) -> tuple[float, float, float, float]:
    """Offset and span of luma, then of chroma, in code values: ITU-T H.273 equations 20 to 31."""
    if full:
        top = float((1 << depth) - 1)
        return 0.0, top, float(1 << (depth - 1)), top
    unit = float(1 << (depth - 8))
    return 16 * unit, 219 * unit, 128 * unit, 224 * unit


def wide(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels or code values as they are, in float32, or in float64 where the result is."""
    result = torch.float64 if torch.float64 in (dtype, x.dtype) else torch.float32
    # uint16 has no arithmetic of its own.
    return x.to(torch.int32).to(result) if x.dtype == torch.uint16 else x.to(result)


def quantised(x: Tensor, top: int, dtype: torch.dtype) -> Tensor:
    """floor(clamp(x, 0, top) + 0.5) for an integer dtype; floats as they are."""
    if dtype.is_floating_point:
        return x.to(dtype)
    x = x.clamp(0, top).add_(0.5)  # a cast of what is not negative rounds down
    return x.to(torch.uint8) if dtype == torch.uint8 else x.to(torch.int32).to(dtype)


def shift(x: Tensor, by: int, dim: int) -> Tensor:
    """The next (1) or previous (-1) neighbour of each element along a dimension; at the border the element itself."""
    size = x.shape[dim]
    if by > 0:
        return torch.cat((x.narrow(dim, 1, size - 1), x.narrow(dim, size - 1, 1)), dim)
    return torch.cat((x.narrow(dim, 0, 1), x.narrow(dim, 0, size - 1)), dim)
