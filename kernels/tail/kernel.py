"""tail in Triton: one kernel with all taps at once, or two, of which the first takes the taps of a row together.

A tile has 3 * r^2 useful outputs, 12 for a x2 stage, and tensor cores take 16 at the least and 64 at their best. So the
second form lets the outputs of every kernel row stand side by side, 60 for a 5x5 kernel, and sums the rows after.
"""

import triton
import triton.language as tl

from srgan_fast.kernels.implicit_gemm import conv_tile, tile_pixels


@triton.jit
def store_pixels(
    acc,
    rows,
    columns,
    valid,
    outputs,
    b_ptr,
    g_ptr,
    o_ptr,
    base_ptr,
    y_ptr,
    W,
    R: tl.constexpr,
    TANH: tl.constexpr,
    BASE: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Sums [pixels, outputs] of one frame -> shuffled pixels; outputs are (colour, row, column) of a sub-pixel."""
    some = outputs < 3 * R * R
    colour = outputs // (R * R)
    acc += tl.load(b_ptr + outputs, mask=some, other=0.0)[None, :]
    place = (rows * W + columns)[:, None]
    kept = valid[:, None] & some[None, :]
    if BASE:
        acc += tl.load(base_ptr + place * 4 + colour[None, :], mask=kept, other=0.0).to(tl.float32)
    if TANH:
        # exp of a negative number never overflows.
        e = tl.exp(-2.0 * tl.abs(acc))
        acc = tl.where(acc >= 0, 1.0, -1.0) * (1.0 - e) / (1.0 + e)
    gain = tl.load(g_ptr + colour, mask=some, other=0.0)[None, :]
    v = acc * gain + tl.load(o_ptr + colour, mask=some, other=0.0)[None, :]
    # A NaN stays one in a float frame: it is how a self-check sees that something went wrong.
    v = tl.minimum(tl.maximum(v, 0.0, tl.PropagateNan.ALL), 1.0, tl.PropagateNan.ALL)
    if LEVELS > 0:
        v = tl.floor(v * LEVELS + 0.5)
    y = rows[:, None] * R + ((outputs % (R * R)) // R)[None, :]
    x = columns[:, None] * R + (outputs % R)[None, :]
    tl.store(y_ptr + (y * (W * R) + x) * 3 + colour[None, :], v.to(y_ptr.dtype.element_ty), mask=kept)


@triton.jit
def tail_pointer(
    x_ptr,
    w_ptr,
    b_ptr,
    g_ptr,
    o_ptr,
    base_ptr,
    y_ptr,
    H,
    W,
    CIN: tl.constexpr,
    SIZE: tl.constexpr,
    R: tl.constexpr,
    TANH: tl.constexpr,
    BASE: tl.constexpr,
    LEVELS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """grid (tiles of a frame, blocks of BN outputs, frames)."""
    frame = tl.program_id(2).to(tl.int64) * H * W
    rows, columns, valid = tile_pixels(tl.program_id(0), H, W, TH, TW)
    outputs = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = conv_tile(x_ptr + frame * CIN, w_ptr, rows, columns, outputs, H, W, CIN, 3 * R * R, SIZE, SIZE, BK)
    base, target = base_ptr + frame * 4, y_ptr + frame * 3 * R * R
    store_pixels(acc, rows, columns, valid, outputs, b_ptr, g_ptr, o_ptr, base, target, W, R, TANH, BASE, LEVELS)


@triton.jit
def tail_rows_pointer(
    x_ptr,
    w_ptr,
    p_ptr,
    H,
    W,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    SIZE: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """A 1 x SIZE convolution to the outputs of every kernel row, COUT = SIZE * 3 * r^2, kept in float32."""
    frame = tl.program_id(2).to(tl.int64) * H * W
    rows, columns, valid = tile_pixels(tl.program_id(0), H, W, TH, TW)
    outputs = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = conv_tile(x_ptr + frame * CIN, w_ptr, rows, columns, outputs, H, W, CIN, COUT, 1, SIZE, BK)
    target = p_ptr + frame * COUT + (rows * W + columns)[:, None] * COUT + outputs[None, :]
    tl.store(target, acc, mask=valid[:, None] & (outputs < COUT)[None, :])


@triton.jit
def tail_sum_pointer(
    p_ptr,
    b_ptr,
    g_ptr,
    o_ptr,
    base_ptr,
    y_ptr,
    H,
    W,
    SIZE: tl.constexpr,
    R: tl.constexpr,
    TANH: tl.constexpr,
    BASE: tl.constexpr,
    LEVELS: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
):
    """grid (blocks of BP pixels, frames): each pixel's row sums, from the rows above and below it."""
    frame = tl.program_id(1).to(tl.int64) * H * W
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    rows, columns = p // W, p % W
    outputs = tl.arange(0, BN)
    some = outputs < 3 * R * R
    acc = tl.zeros((BP, BN), dtype=tl.float32)
    for row in range(SIZE):
        y = rows + row - SIZE // 2
        inside = (p < H * W) & (y >= 0) & (y < H)
        source = (y * W + columns)[:, None] * (SIZE * 3 * R * R) + (row * 3 * R * R + outputs)[None, :]
        acc += tl.load(p_ptr + frame * SIZE * 3 * R * R + source, mask=inside[:, None] & some[None, :], other=0.0)
    base, target = base_ptr + frame * 4, y_ptr + frame * 3 * R * R
    store_pixels(acc, rows, columns, p < H * W, outputs, b_ptr, g_ptr, o_ptr, base, target, W, R, TANH, BASE, LEVELS)
