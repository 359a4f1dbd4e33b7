"""yuv_to_rgb in Triton: one pass, whose programs interpolate the chroma of their pixels themselves."""

import triton
import triton.language as tl

from srgan_fast.kernels.implicit_gemm import tile_pixels


@triton.jit
def neighbours(at, size, HALVED: tl.constexpr, ON_FIRST: tl.constexpr):
    """Of luma at `at` along an axis: the chroma that is near, the one beyond it, and whether it lies on the first."""
    if not HALVED:
        return at, at, at == at
    near = at // 2
    even = at % 2 == 0
    after = tl.minimum(near + 1, size - 1)
    if ON_FIRST:
        return near, after, even
    return near, tl.where(even, tl.maximum(near - 1, 0), after), even


@triton.jit
def between(near, far, even, HALVED: tl.constexpr, ON_FIRST: tl.constexpr):
    """Chroma at the place of luma, linear between the two."""
    if not HALVED:
        return near
    if ON_FIRST:
        return tl.where(even, near, (near + far) * 0.5)
    return near * 0.75 + far * 0.25


@triton.jit
def chroma(
    c_ptr,
    offset,
    rows,
    columns,
    CH,
    CW,
    kept,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    FIRST_ROW: tl.constexpr,
    FIRST_COLUMN: tl.constexpr,
):
    """One plane of chroma, from its offset, at the places of luma: along the rows first."""
    x, beyond_x, even_x = neighbours(columns, CW, ACROSS, FIRST_COLUMN)
    y, beyond_y, even_y = neighbours(rows, CH, DOWN, FIRST_ROW)
    row = y.to(tl.int64) * CW
    near = tl.load(c_ptr + row + x, mask=kept, other=0).to(tl.float32) - offset
    if ACROSS:
        far = tl.load(c_ptr + row + beyond_x, mask=kept, other=0).to(tl.float32) - offset
        near = between(near, far, even_x, ACROSS, FIRST_COLUMN)
    if DOWN:
        row = beyond_y.to(tl.int64) * CW
        other = tl.load(c_ptr + row + x, mask=kept, other=0).to(tl.float32) - offset
        if ACROSS:
            far = tl.load(c_ptr + row + beyond_x, mask=kept, other=0).to(tl.float32) - offset
            other = between(other, far, even_x, ACROSS, FIRST_COLUMN)
        near = between(near, other, even_y, DOWN, FIRST_ROW)
    return near


@triton.jit
def store(o_ptr, v, top, kept, WHOLE: tl.constexpr):
    """clamp(v, 0, top), rounded to a whole number where pixels are; a NaN stays one in a float frame."""
    v = tl.minimum(tl.maximum(v, 0.0, tl.PropagateNan.ALL), top, tl.PropagateNan.ALL)
    if WHOLE:
        v = tl.floor(v + 0.5)
    tl.store(o_ptr, v.to(o_ptr.dtype.element_ty), mask=kept)


@triton.jit
def yuv_to_rgb_pointer(
    y_ptr,
    u_ptr,
    v_ptr,
    o_ptr,
    H,
    W,
    CH,
    CW,
    top,
    y_offset,
    c_offset,
    luma,
    v_to_red,
    u_to_green,
    v_to_green,
    u_to_blue,
    CHROMA: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    FIRST_ROW: tl.constexpr,
    FIRST_COLUMN: tl.constexpr,
    WHOLE: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """grid (tiles of TH x TW pixels); the order of operations is the reference's, and none may be fused."""
    rows, columns, kept = tile_pixels(tl.program_id(0), H, W, TH, TW)
    place = rows.to(tl.int64) * W + columns
    y = (tl.load(y_ptr + place, mask=kept, other=0).to(tl.float32) - y_offset) * luma
    red, green, blue = y, y, y
    if CHROMA:
        u = chroma(u_ptr, c_offset, rows, columns, CH, CW, kept, DOWN, ACROSS, FIRST_ROW, FIRST_COLUMN)
        v = chroma(v_ptr, c_offset, rows, columns, CH, CW, kept, DOWN, ACROSS, FIRST_ROW, FIRST_COLUMN)
        red, green, blue = y + v * v_to_red, y + u * u_to_green + v * v_to_green, y + u * u_to_blue
    store(o_ptr + place * 3, red, top, kept, WHOLE)
    store(o_ptr + place * 3 + 1, green, top, kept, WHOLE)
    store(o_ptr + place * 3 + 2, blue, top, kept, WHOLE)
