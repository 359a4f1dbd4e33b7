"""conv3x3 in Triton: by pointers (cp.async) everywhere, by tensor descriptors (TMA) where the hardware has them."""

import triton
import triton.language as tl

from srgan_fast.kernels.implicit_gemm import biased_prelu, conv_tile, tile_pixels


@triton.jit
def conv3x3_pointer(
    x_ptr,
    w_ptr,
    b_ptr,
    s_ptr,
    r_ptr,
    y_ptr,
    H,
    W,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    PRELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """grid (tiles of a frame, blocks of BN outputs, frames)."""
    frame = tl.program_id(2).to(tl.int64) * H * W
    rows, columns, valid = tile_pixels(tl.program_id(0), H, W, TH, TW)
    outputs = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = conv_tile(x_ptr + frame * CIN, w_ptr, rows, columns, outputs, H, W, CIN, COUT, 3, 3, BK)
    acc = biased_prelu(acc, b_ptr, s_ptr, outputs, COUT, PRELU)
    offsets = (rows * W + columns)[:, None] * COUT + outputs[None, :]
    kept = valid[:, None] & (outputs < COUT)[None, :]
    if RESIDUAL:
        acc += tl.load(r_ptr + frame * COUT + offsets, mask=kept, other=0.0).to(tl.float32)
    tl.store(y_ptr + frame * COUT + offsets, acc.to(y_ptr.dtype.element_ty), mask=kept)


@triton.jit
def conv3x3_descriptor(
    x_desc,
    w_desc,
    b_ptr,
    s_ptr,
    r_desc,
    y_desc,
    TILES,
    TILES_ACROSS,
    TILES_FRAME,
    PROGRAMS,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    PRELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BN: tl.constexpr,
):
    """Persistent: program p of PROGRAMS takes tiles p, p + PROGRAMS, ... of all frames and blocks of outputs.

    The hardware fills what lies outside a frame with zeros on loads and drops it on stores.
    """
    for tile in tl.range(tl.program_id(0), TILES, PROGRAMS):
        blocks: tl.constexpr = COUT // BN
        output = (tile % blocks) * BN
        place = tile // blocks
        frame = place // TILES_FRAME
        row = (place % TILES_FRAME) // TILES_ACROSS * TH
        column = (place % TILES_FRAME) % TILES_ACROSS * TW
        acc = tl.zeros((TH * TW, BN), dtype=tl.float32)
        for tap in range(9):
            a = x_desc.load([frame, row + tap // 3 - 1, column + tap % 3 - 1, 0]).reshape(TH * TW, CIN)
            b = w_desc.load([tap * CIN, output])
            acc = tl.dot(a, b, acc, input_precision="ieee")
        acc = biased_prelu(acc, b_ptr, s_ptr, output + tl.arange(0, BN), COUT, PRELU)
        if RESIDUAL:
            acc += r_desc.load([frame, row, column, output]).reshape(TH * TW, BN).to(tl.float32)
        y_desc.store([frame, row, column, output], acc.to(y_desc.dtype).reshape(1, TH, TW, BN))
