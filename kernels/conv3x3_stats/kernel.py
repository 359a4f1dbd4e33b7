"""conv3x3_stats in Triton: the pixels of all frames in one row, cut into blocks, so that small maps leave no rest."""

import triton
import triton.language as tl

from srgan_fast.kernels.moments import join_parts_pointer as join_parts_pointer
from srgan_fast.kernels.moments import store_part


@triton.jit
def conv3x3_stats_pointer(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    parts_ptr,
    PIXELS,
    H,
    W,
    HO,
    WO,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    STRIDE: tl.constexpr,
    BIAS: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """grid (blocks of BP result pixels, blocks of BN outputs); weights [COUT, 3, 3, CIN], as channels_last has them."""
    first = tl.program_id(0) * BP
    p = first + tl.arange(0, BP)
    outputs = tl.program_id(1) * BN + tl.arange(0, BN)
    valid = p < PIXELS
    top = (p // WO) % HO * STRIDE - 1
    left = p % WO * STRIDE - 1
    corner = (p // (HO * WO) * H + top) * W + left
    acc = tl.zeros((BP, BN), dtype=tl.float32)
    blocks: tl.constexpr = (CIN + BK - 1) // BK
    # One loop over taps and blocks of inputs, so that loads run ahead across taps too.
    for step in range(9 * blocks):
        tap = step // blocks
        inputs = (step % blocks) * BK + tl.arange(0, BK)
        y = top + tap // 3
        x = left + tap % 3
        inside = (valid & (y >= 0) & (y < H) & (x >= 0) & (x < W))[:, None]
        some = outputs[None, :] < COUT
        if CIN % BK != 0:
            inside = inside & (inputs < CIN)[None, :]
            some = some & (inputs < CIN)[:, None]
        source = x_ptr + (corner + tap // 3 * W + tap % 3)[:, None] * CIN + inputs[None, :]
        a = tl.load(source, mask=inside, other=0.0)
        b = tl.load(w_ptr + (outputs * 9 + tap)[None, :] * CIN + inputs[:, None], mask=some, other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(b_ptr + outputs, mask=outputs < COUT, other=0.0)[None, :]
    kept = valid[:, None] & (outputs < COUT)[None, :]
    tl.store(y_ptr + p[:, None] * COUT + outputs[None, :], acc.to(y_ptr.dtype.element_ty), mask=kept)
    store_part(acc, kept, first, PIXELS, parts_ptr, outputs, COUT)
