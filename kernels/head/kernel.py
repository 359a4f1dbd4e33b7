"""head in Triton: a row of the kernel is one matrix product, K = the pixels of that row times their four channels."""

import triton
import triton.language as tl

from srgan_fast.kernels.implicit_gemm import biased_prelu, tile_pixels


@triton.jit
def head_pointer(
    x_ptr,
    w_ptr,
    b_ptr,
    s_ptr,
    y_ptr,
    H,
    W,
    COUT: tl.constexpr,
    SIZE: tl.constexpr,
    BK: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BN: tl.constexpr,
):
    """grid (tiles of a frame, blocks of BN outputs, frames); weights [SIZE, BK, COUT], zero beyond SIZE * 4."""
    frame = tl.program_id(2).to(tl.int64) * H * W
    rows, columns, valid = tile_pixels(tl.program_id(0), H, W, TH, TW)
    outputs = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    x = columns[:, None] - SIZE // 2 + (k // 4)[None, :]
    acc = tl.zeros((TH * TW, BN), dtype=tl.float32)
    for row in range(SIZE):
        y = rows + row - SIZE // 2
        inside = ((y >= 0) & (y < H))[:, None] & (x >= 0) & (x < W) & (k < SIZE * 4)[None, :]
        a = tl.load(x_ptr + frame * 4 + (y * W)[:, None] * 4 + x * 4 + (k % 4)[None, :], mask=inside, other=0.0)
        b = tl.load(
            w_ptr + (row * BK + k)[:, None] * COUT + outputs[None, :], mask=(outputs < COUT)[None, :], other=0.0
        )
        acc = tl.dot(a, b, acc, input_precision="ieee")
    acc = biased_prelu(acc, b_ptr, s_ptr, outputs, COUT, True)
    target = y_ptr + frame * COUT + (rows * W + columns)[:, None] * COUT + outputs[None, :]
    tl.store(target, acc.to(y_ptr.dtype.element_ty), mask=valid[:, None] & (outputs < COUT)[None, :])
