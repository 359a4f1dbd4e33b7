"""Video colour: the standards' matrices, code values and chroma positions, shared by yuv_to_rgb and rgb_to_yuv."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Weights of red and blue in luma: ITU-R BT.601, BT.709 and BT.2020 (non-constant luminance), section "signal format".
LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}

# Where chroma lies in a 4:2:0 or 4:2:2 block, ITU-T H.273 figure 10: between the two luma columns and rows, or on the
# first of them. (across, down) is whether it lies on the first.
SITINGS = {"left": (True, False), "centre": (False, False), "topleft": (True, True)}

# By how much chroma is smaller than luma: down, across. 400 is grey.
SUBSAMPLINGS = {"400": None, "420": (2, 2), "422": (1, 2), "444": (1, 1)}

# At 32 bits half a megabyte: of smaller bands a CPU spends more on calls than on pixels.
_BAND_PIXELS = 1 << 17


def shapes(height: int, width: int, subsampling: str) -> list[tuple[int, int]]:
    """Those of the planes of a frame: of luma, and where there is chroma of both its planes."""
    less = SUBSAMPLINGS[subsampling]
    return [(height, width)] + ([] if less is None else [(-(-height // less[0]), -(-width // less[1]))] * 2)


def levels(full: bool, depth: int) -> tuple[float, float, float, float]:
    """Offset and span of luma, then of chroma, in code values: ITU-T H.273 equations 20 to 31."""
    if full:
        top = float((1 << depth) - 1)
        return 0.0, top, float(1 << (depth - 1)), top
    unit = float(1 << (depth - 8))
    return 16 * unit, 219 * unit, 128 * unit, 224 * unit


class ToRGB(NamedTuple):
    """What code values are multiplied with, in this order: without their offsets, to values from 0 to a top."""

    y_offset: float
    c_offset: float
    luma: float
    v_to_red: float
    u_to_green: float
    v_to_green: float
    u_to_blue: float

    @classmethod
    def of(cls, matrix: str, full: bool, depth: int, top: int) -> ToRGB:
        """Those of a matrix, a range and a depth."""
        y_offset, y_span, c_offset, c_span = levels(full, depth)
        red, blue = LUMA[matrix]
        green = 1 - red - blue
        to_red, to_blue = 2 * (1 - red) * top / c_span, 2 * (1 - blue) * top / c_span
        to_green = (-blue * to_blue / green, -red * to_red / green)
        return cls(y_offset, c_offset, top / y_span, to_red, *to_green, to_blue)


class ToYUV(NamedTuple):
    """What red, green and blue from 0 to a top are multiplied with, for y, u and v in turn; then offsets are added."""

    y_offset: float
    c_offset: float
    y: tuple[float, float, float]
    u: tuple[float, float, float]
    v: tuple[float, float, float]

    @classmethod
    def of(cls, matrix: str, full: bool, depth: int, top: int) -> ToYUV:
        """Those of a matrix, a range and a depth."""
        y_offset, y_span, c_offset, c_span = levels(full, depth)
        red, blue = LUMA[matrix]
        green = 1 - red - blue
        y, u, v = y_span / top, c_span / (2 - 2 * blue) / top, c_span / (2 - 2 * red) / top
        return cls(
            y_offset,
            c_offset,
            (red * y, green * y, blue * y),
            (-red * u, -green * u, (1 - blue) * u),
            ((1 - red) * v, -green * v, -blue * v),
        )


def wide(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels or code values as they are, in float32, or in float64 where the result is."""
    return x.to(torch.float64 if torch.float64 in (dtype, x.dtype) else torch.float32)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What a cast to an integer dtype makes floor(x + 0.5) of, where x is not negative; floats as they are.

    `x` is written over.
    """
    return x if dtype.is_floating_point else x.add_(0.5)


def padded(x: Tensor, dim: int) -> Tensor:
    """With one more element at both ends of a dimension, each like its neighbour."""
    size = x.shape[dim]
    return torch.cat((x.narrow(dim, 0, 1), x, x.narrow(dim, size - 1, 1)), dim)


def bands(x: Tensor) -> Iterator[tuple[int, int]]:
    """Bands of rows of a frame [h, w, ...] from a first one, which is even, to before an end.

    What a CPU makes of one stays in its cache; a GPU has a frame in one piece.
    """
    height, width = x.shape[:2]
    rows = max(2, _BAND_PIXELS // width // 2 * 2) if x.device.type == "cpu" else height
    for top in range(0, height, rows):
        yield top, min(top + rows, height)
