"""The `paper` protocol: what the daala tools that Ledig et al. measured with make of an RGB image.

The image becomes 8-bit BT.709 studio luma as in a 4:2:0 video: a fixed triangular dither is added, chroma is rounded
once for each 2x2 block, and each luma is the value that brings RGB closest, given that chroma. PSNR and SSIM are of
this luma. The SSIM window grows with the height of the image and is cut off at the borders, which is why the paper's
SSIM is higher than Wang's on tall images.

Written afresh in float64 from a description of the tools (png2y4m, dump_psnr, dump_ssim of xiph/daala in 2016) and
the standard's coefficients; two things that the description leaves open, the sign of the chroma dither on green and
odd sizes, are as the source of png2y4m (BSD-2-Clause) has them. On Set5 it gives the paper's nearest and bicubic
scores to the last digit printed there.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

# ITU-R BT.709.
_KR, _KG, _KB = 0.2126, 0.7152, 0.0722
_CB_TO_B, _CR_TO_R = 2 * (1 - _KB), 2 * (1 - _KR)
_CB_TO_G, _CR_TO_G = -_KB * _CB_TO_B / _KG, -_KR * _CR_TO_R / _KG
# One step of 8-bit studio luma and chroma, in 16-bit RGB.
_Y_STEP, _C_STEP = 65535 / 219, 65535 / 224

# Marsaglia's KISS of 1999, with his seeds, and the largest deviate of Y, Cb and Cr that the tool draws.
_Z, _W, _SHR, _CONG = 362436069, 521288629, 123456789, 380116160
_LARGEST = (1223320000, 1479548743, 1255654969)
_MASK = (1 << 32) - 1


def luma(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The luma plane that png2y4m writes for an image.

    Shapes:  [h, w, 3] -> [h, w]
    Cost:    the dither of a new size takes up to a second for 512x512, and is then kept
    """
    height, width = rgb.shape[:2]
    dithered = rgb.astype(np.float64) * 257 + _dither(height, width)
    # An odd size repeats its last row and column, dither included.
    even = np.pad(dithered, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    block = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, 3).mean(axis=(1, 3))
    grey = block @ np.array([_KR, _KG, _KB])
    cb = np.clip(_round((block[..., 2] - grey) / _CB_TO_B / _C_STEP) + 128, 0, 255) - 128
    cr = np.clip(_round((block[..., 0] - grey) / _CR_TO_R / _C_STEP) + 128, 0, 255) - 128
    chroma = _C_STEP * np.stack([_CR_TO_R * cr, _CB_TO_G * cb + _CR_TO_G * cr, _CB_TO_B * cb], axis=-1)
    chroma = chroma.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]

    # 238 and not 239, so that one more is still a byte.
    low = np.clip(np.floor((dithered - chroma) @ np.array([_KR, _KG, _KB]) / _Y_STEP), -16, 238)
    error_low, error_high = (
        np.sum((dithered - np.clip(_round(_Y_STEP * y[..., None] + chroma), 0, 65535)) ** 2, axis=-1)
        for y in (low, low + 1)
    )
    odd_tie = (error_high == error_low) & (low % 2 == 1)
    chosen: Floats = low + ((error_high < error_low) | odd_tie) + 16
    return chosen.astype(np.uint8)


def window(height: int, longest: int) -> NDArray[np.float64]:
    """The integer Gaussian of dump_ssim for an image of this height: weights that sum to 256, at most `longest` long
    to each side of the centre."""
    sigma = 1.5 * height / 256
    inside = math.sqrt(math.pi / 2) * sigma / 256
    reach = 0 if inside >= 1 else min(math.floor(sigma * math.sqrt(-2 * math.log(inside))), longest)
    offsets = np.arange(1, reach + 1)
    side = np.floor(256 / (sigma * math.sqrt(2 * math.pi)) * np.exp(-(offsets**2) / (2 * sigma**2)) + 0.5)
    return np.concatenate([side[::-1], [256 - 2 * side.sum()], side])


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Structural similarity of two luma planes as dump_ssim's raw score: windows are cut off at the borders, and a
    position counts as much as its window has weight."""
    height, width = a.shape
    taps = window(height, min(height, width) - 1)

    def blur(x: Floats) -> Floats:
        return _along(_along(x, taps, 0), taps, 1)

    x, y = a.astype(np.float64), b.astype(np.float64)
    weight = blur(np.ones_like(x))
    mean_x, mean_y = blur(x), blur(y)
    var_x = blur(x * x) * weight - mean_x**2
    var_y = blur(y * y) * weight - mean_y**2
    cov = blur(x * y) * weight - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2 * weight**2, (0.03 * 255) ** 2 * weight**2
    score = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(np.sum(weight * score) / np.sum(weight))


def _along(x: Floats, taps: Floats, axis: int) -> Floats:
    """Correlate one axis with `taps`, taking nothing from beyond the border."""
    reach = len(taps) // 2
    pad = [(0, 0), (0, 0)]
    pad[axis] = (reach, reach)
    padded = np.pad(x, pad)
    out = np.zeros_like(x)
    for start, tap in enumerate(taps):
        out += tap * (padded[start : start + x.shape[0]] if axis == 0 else padded[:, start : start + x.shape[1]])
    return out


def _round(x: Floats) -> Floats:
    """To the nearest integer, halves away from zero."""
    rounded: Floats = np.copysign(np.floor(np.abs(x) + 0.5), x)
    return rounded


@lru_cache(maxsize=16)
def _dither(height: int, width: int) -> NDArray[np.int32]:
    """What is added to the 16-bit RGB of an image of this size: [h, w, 3]."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    drawn = _deviates(rows * columns * 4).reshape(rows, columns, 2, 2, 3) / np.array(_LARGEST)
    drawn[..., 1:] = drawn[:, :, :1, :1, 1:]  # one chroma deviate for the four pixels of a block
    y, cb, cr = np.moveaxis(drawn.transpose(0, 2, 1, 3, 4).reshape(2 * rows, 2 * columns, 3), -1, 0)
    red = _Y_STEP * y + _C_STEP * _CR_TO_R * cr
    # The tool adds both chroma deviates to green, where the matrix would take them away; scores depend on it.
    green = _Y_STEP * y - _C_STEP * (_CB_TO_G * cb + _CR_TO_G * cr)
    blue = _Y_STEP * y + _C_STEP * _CB_TO_B * cb
    dither = _round(np.stack([red, green, blue], axis=-1))[:height, :width].astype(np.int32)
    dither.flags.writeable = False
    return dither


def _deviates(count: int) -> Floats:
    """The first `count` triples of triangular deviates (Y, Cb, Cr), each the difference of two uniform draws."""
    sizes = [largest + 1 for largest in _LARGEST]
    # A draw above the last whole multiple of the range is thrown away, so that the rest is uniform.
    limits = [_MASK // size * size for size in sizes]
    order = [limit for limit in limits for _ in range(2)] * count
    # About 1.25 numbers are drawn for one that is kept.
    numbers = kiss99(int(len(order) * 1.3) + 4096)
    kept: list[int] = []
    keep, position, needed = kept.append, 0, len(order)
    for number in numbers.tolist():
        if number < order[position]:
            keep(number)
            position += 1
            if position == needed:
                break
    uniform = np.array(kept, dtype=np.int64).reshape(count, 3, 2) % np.array(sizes)[:, None]
    deviates: NDArray[np.int64] = uniform[..., 0] - uniform[..., 1]
    return deviates.astype(np.float64)


def kiss99(count: int) -> Words:
    """The first `count` numbers of KISS99 with its published seeds.

    Each of its four parts can be moved on by n steps at once, so a sequence is made by doubling it, not in a loop.
    Source:  G. Marsaglia, "Random numbers for C: the END?", sci.math, 1999
    """
    mask = np.uint64(_MASK)
    high = _multiply_with_carry(_Z, 36969, count)
    low = _multiply_with_carry(_W, 18000, count)
    return ((((high << np.uint64(16)) + low) ^ _congruential(count)) + _shift_register(count)) & mask


def _multiply_with_carry(seed: int, factor: int, count: int) -> Words:
    # With the carry in the upper 16 bits, one step is a multiplication modulo factor * 2^16 - 1.
    modulus = factor * 65536 - 1
    states = np.array([seed * factor % modulus], dtype=np.uint64)
    while len(states) < count:
        ahead = np.uint64(pow(factor, len(states), modulus))
        states = np.concatenate([states, states * ahead % np.uint64(modulus)])
    return states[:count]


def _congruential(count: int) -> Words:
    factor, increment = 69069, 1234567
    states = np.array([(_CONG * factor + increment) & _MASK], dtype=np.uint64)
    while len(states) < count:
        # The products stay below 2^64.
        ahead = states * np.uint64(factor) + np.uint64(increment)
        states = np.concatenate([states, ahead & np.uint64(_MASK)])
        factor, increment = factor * factor & _MASK, (factor * increment + increment) & _MASK
    return states[:count]


def _shift_register(count: int) -> Words:
    def step(x: int) -> int:
        x ^= x << 17 & _MASK
        x ^= x >> 13
        return x ^ (x << 5 & _MASK)

    # One step is linear over GF(2): its matrix is what it makes of each single bit.
    columns = [step(1 << bit) for bit in range(32)]
    states = np.array([step(_SHR)], dtype=np.uint64)
    while len(states) < count:
        states = np.concatenate([states, _times(columns, states)])
        columns = _times(columns, np.array(columns, dtype=np.uint64)).tolist()
    return states[:count]


def _times(columns: list[int], states: Words) -> Words:
    """A 32x32 matrix over GF(2), given by columns, times each state; by table, a byte at a time."""
    product = np.zeros_like(states)
    for byte in range(4):
        table = np.zeros(1, dtype=np.uint64)
        for bit in range(8):
            table = np.concatenate([table, table ^ np.uint64(columns[8 * byte + bit])])
        product ^= table[(states >> np.uint64(8 * byte)) & np.uint64(255)]
    return product
