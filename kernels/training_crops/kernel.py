"""training_crops in Triton: HR and LR of a crop by programs of one launch."""

import triton
import triton.language as tl


@triton.jit
def levels(p_ptr, start, height, width, y, x, turn, i, j, c, kept, SIZE):
    """Pixels (i, j) of plane c of a square of SIZE at (y, x) of an image, as it lies after its turn; i and j broadcast.

    What lies outside of the square is the image around it, and outside of the image its border pixel.
    """
    j = tl.where(turn >= 4, SIZE - 1 - j, j)
    quarter = turn % 4
    up, left = SIZE - 1 - i, SIZE - 1 - j
    row = tl.where(quarter == 0, i, tl.where(quarter == 1, j, tl.where(quarter == 2, up, left)))
    column = tl.where(quarter == 0, j, tl.where(quarter == 1, up, tl.where(quarter == 2, left, i)))
    # The table and the draws hold 64-bit integers, and so all of this is: a store may pass 2^31 bytes.
    row = tl.minimum(tl.maximum(y + row, 0), height - 1)
    column = tl.minimum(tl.maximum(x + column, 0), width - 1)
    return tl.load(p_ptr + start + (c * height + row) * width + column, mask=kept, other=0).to(tl.int32)


@triton.jit
def cubic(tap, SCALE: tl.constexpr):
    """MATLAB's weight of one of the 4 * SCALE samples under a smaller pixel, times 16 * SCALE^4: an integer."""
    m: tl.constexpr = 2 * SCALE
    d = tl.abs(2 * tap + 1 - 2 * m)
    near = (3 * d - 5 * m) * d * d + 2 * m * m * m
    far = ((5 * m - d) * d - 8 * m * m) * d + 4 * m * m * m
    return tl.where(d <= m, near, far)


@triton.jit
def rounded(total, SHIFT: tl.constexpr):
    """A sum of weighted levels as a level: half up, cut to 8 bits."""
    return tl.minimum(tl.maximum((total + (1 << (SHIFT - 1))) >> SHIFT, 0), 255)


@triton.jit
def high(p_ptr, t_ptr, d_ptr, hr_ptr, block, crop, CROP, STEP: tl.constexpr, BP: tl.constexpr):
    """BP HR pixels of a crop, of which a draw names the corner in units of STEP."""
    row, turn = t_ptr + tl.load(d_ptr + crop * 4) * 3, tl.load(d_ptr + crop * 4 + 3)
    start, height, width = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    y, x = tl.load(d_ptr + crop * 4 + 1) * STEP, tl.load(d_ptr + crop * 4 + 2) * STEP
    p = block * BP + tl.arange(0, BP)
    c = tl.arange(0, 4)
    kept = (p < CROP * CROP)[:, None] & (c < 3)[None, :]
    i, j = (p // CROP)[:, None], (p % CROP)[:, None]
    v = levels(p_ptr, start, height, width, y, x, turn, i, j, c[None, :], kept, CROP).to(tl.float32)
    # Rounded as a division is, which the plain operator is not on a GPU.
    v = tl.div_rn(v, tl.full(v.shape, 127.5, tl.float32)) - 1.0
    tl.store(hr_ptr + (crop * CROP * CROP + p[:, None]) * 3 + c[None, :], v, mask=kept)


@triton.jit
def low(
    p_ptr,
    t_ptr,
    d_ptr,
    lr_ptr,
    block,
    crop,
    CROP,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    PAIRS: tl.constexpr,
    BL: tl.constexpr,
):
    """BL LR values of a crop: shrunk, or for pairs cut from images of their own."""
    row, turn = t_ptr + tl.load(d_ptr + crop * 4) * 3, tl.load(d_ptr + crop * 4 + 3)
    start, height, width = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    y, x = tl.load(d_ptr + crop * 4 + 1), tl.load(d_ptr + crop * 4 + 2)
    size = CROP // SCALE
    value = block * BL + tl.arange(0, BL)
    q, c = value // 3, value % 3
    kept = value < size * size * 3
    if PAIRS:
        small = levels(p_ptr, start, height, width, y, x, turn, q // size, q % size, c, kept, size)
    else:
        # From the middle of an LR pixel its 4 * SCALE samples reach 3/2 of its side over either edge.
        taps = tl.arange(0, 4 * SCALE)
        top = ((q // size) * SCALE - 3 * SCALE // 2)[:, None]
        j = (q % size)[:, None] * SCALE - 3 * SCALE // 2 + taps[None, :]
        rows = tl.zeros([BL, 4 * SCALE], tl.int32)
        for tap in range(4 * SCALE):
            v = levels(p_ptr, start, height, width, y, x, turn, top + tap, j, c[:, None], kept[:, None], CROP)
            rows += cubic(tap, SCALE) * v
        small = rounded(tl.sum(cubic(taps, SCALE)[None, :] * rounded(rows, SHIFT), 1), SHIFT)
    v = tl.div_rn(small.to(tl.float32), tl.full(small.shape, 255.0, tl.float32))
    tl.store(lr_ptr + crop * size * size * 3 + value, v, mask=kept)


@triton.jit
def training_crops_pointer(
    p_ptr,
    t_ptr,
    l_ptr,
    d_ptr,
    lr_ptr,
    hr_ptr,
    CROP,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    PAIRS: tl.constexpr,
    BP: tl.constexpr,
    BL: tl.constexpr,
):
    """grid (blocks of BP HR pixels, then blocks of BL LR values; crops)."""
    crop = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0)
    blocks = tl.cdiv(CROP * CROP, BP)
    if block < blocks:
        high(p_ptr, t_ptr, d_ptr, hr_ptr, block, crop, CROP, SCALE if PAIRS else 1, BP)
    else:
        low(p_ptr, l_ptr, d_ptr, lr_ptr, block - blocks, crop, CROP, SCALE, SHIFT, PAIRS, BL)
