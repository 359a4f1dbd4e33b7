"""rgb_to_yuv in Triton: one pass, whose programs smooth the colours around their chroma themselves."""

import triton
import triton.language as tl

from srgan_fast.kernels.implicit_gemm import tile_pixels


@triton.jit
def colour(x_ptr, row, column, W, kept, FLOATS: tl.constexpr):
    """One colour of pixels; floats are cut to [0, 1]."""
    v = tl.load(x_ptr + (row.to(tl.int64) * W + column) * 3, mask=kept, other=0).to(tl.float32)
    if FLOATS:
        v = tl.minimum(tl.maximum(v, 0.0, tl.PropagateNan.ALL), 1.0, tl.PropagateNan.ALL)
    return v


@triton.jit
def smoothed(before, at, after, ON_FIRST: tl.constexpr):
    """The mean of two, or of three with the middle one twice."""
    if ON_FIRST:
        return (before + after) * 0.25 + at * 0.5
    return (at + after) * 0.5


@triton.jit
def down(x_ptr, row, column, H, W, kept, FLOATS: tl.constexpr, HALVED: tl.constexpr, ON_FIRST: tl.constexpr):
    """One colour at the rows of chroma; outside the frame the border goes on."""
    if not HALVED:
        return colour(x_ptr, row, column, W, kept, FLOATS)
    at = colour(x_ptr, 2 * row, column, W, kept, FLOATS)
    after = colour(x_ptr, tl.minimum(2 * row + 1, H - 1), column, W, kept, FLOATS)
    before = at
    if ON_FIRST:
        before = colour(x_ptr, tl.maximum(2 * row - 1, 0), column, W, kept, FLOATS)
    return smoothed(before, at, after, ON_FIRST)


@triton.jit
def around(
    x_ptr,
    row,
    column,
    H,
    W,
    kept,
    FLOATS: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    FIRST_ROW: tl.constexpr,
    FIRST_COLUMN: tl.constexpr,
):
    """One colour where chroma lies: down the columns first."""
    if not ACROSS:
        return down(x_ptr, row, column, H, W, kept, FLOATS, DOWN, FIRST_ROW)
    at = down(x_ptr, row, 2 * column, H, W, kept, FLOATS, DOWN, FIRST_ROW)
    after = down(x_ptr, row, tl.minimum(2 * column + 1, W - 1), H, W, kept, FLOATS, DOWN, FIRST_ROW)
    before = at
    if FIRST_COLUMN:
        before = down(x_ptr, row, tl.maximum(2 * column - 1, 0), H, W, kept, FLOATS, DOWN, FIRST_ROW)
    return smoothed(before, at, after, FIRST_COLUMN)


@triton.jit
def store(p_ptr, red, green, blue, from_red, from_green, from_blue, offset, top, kept, WHOLE: tl.constexpr):
    """A plane, in whole code values from 0 to top or in floats as they are."""
    v = red * from_red + green * from_green + blue * from_blue + offset
    if WHOLE:
        v = tl.floor(tl.minimum(tl.maximum(v, 0.0), top) + 0.5)
    tl.store(p_ptr, v.to(p_ptr.dtype.element_ty), mask=kept)


@triton.jit
def rgb_to_yuv_pointer(
    x_ptr,
    y_ptr,
    u_ptr,
    v_ptr,
    H,
    W,
    CH,
    CW,
    top,
    y_offset,
    c_offset,
    red_to_y,
    green_to_y,
    blue_to_y,
    red_to_u,
    green_to_u,
    blue_to_u,
    red_to_v,
    green_to_v,
    blue_to_v,
    FLOATS: tl.constexpr,
    CHROMA: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    FIRST_ROW: tl.constexpr,
    FIRST_COLUMN: tl.constexpr,
    WHOLE: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    CTH: tl.constexpr,
    CTW: tl.constexpr,
):
    """grid (tiles of TH x TW pixels, whose chroma is CTH x CTW); the order of operations is the reference's."""
    tile = tl.program_id(0)
    row, column, kept = tile_pixels(tile, H, W, TH, TW)
    red = colour(x_ptr, row, column, W, kept, FLOATS)
    green = colour(x_ptr + 1, row, column, W, kept, FLOATS)
    blue = colour(x_ptr + 2, row, column, W, kept, FLOATS)
    place = row.to(tl.int64) * W + column
    store(y_ptr + place, red, green, blue, red_to_y, green_to_y, blue_to_y, y_offset, top, kept, WHOLE)
    if CHROMA:
        row, column, kept = tile_pixels(tile, CH, CW, CTH, CTW)
        red = around(x_ptr, row, column, H, W, kept, FLOATS, DOWN, ACROSS, FIRST_ROW, FIRST_COLUMN)
        green = around(x_ptr + 1, row, column, H, W, kept, FLOATS, DOWN, ACROSS, FIRST_ROW, FIRST_COLUMN)
        blue = around(x_ptr + 2, row, column, H, W, kept, FLOATS, DOWN, ACROSS, FIRST_ROW, FIRST_COLUMN)
        place = row.to(tl.int64) * CW + column
        store(u_ptr + place, red, green, blue, red_to_u, green_to_u, blue_to_u, c_offset, top, kept, WHOLE)
        store(v_ptr + place, red, green, blue, red_to_v, green_to_v, blue_to_v, c_offset, top, kept, WHOLE)
