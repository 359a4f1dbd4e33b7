"""Device code that the convolutions share: a tile of output pixels as one matrix product per tap.

A tile is TH x TW pixels of a frame [h, w, c] by BN output channels. Each tap of the kernel multiplies the pixels that
it looks at, [TH*TW, BK] channels at a time, with its slice of the weights, [BK, BN], and adds in float32. Pixels
outside the frame are loaded as zero, which is the convolution's padding.
"""

import triton
import triton.language as tl


@triton.jit
def tile_pixels(tile, H, W, TH: tl.constexpr, TW: tl.constexpr):
    """Rows, columns and validity of the pixels of a tile, each [TH*TW]; tiles run along the rows."""
    across = tl.cdiv(W, TW)
    m = tl.arange(0, TH * TW)
    rows = (tile // across) * TH + m // TW
    columns = (tile % across) * TW + m % TW
    return rows, columns, (rows < H) & (columns < W)


@triton.jit
def conv_tile(
    x_ptr,
    w_ptr,
    rows,
    columns,
    outputs,
    H,
    W,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BK: tl.constexpr,
):
    """The sums of a tile, [pixels, outputs], in float32, of int8 in int32.

    x_ptr points at a frame, the weights are [KH*KW, CIN, COUT].
    """
    acc_type: tl.constexpr = tl.int32 if x_ptr.dtype.element_ty == tl.int8 else tl.float32
    acc = tl.zeros((rows.shape[0], outputs.shape[0]), dtype=acc_type)
    blocks: tl.constexpr = (CIN + BK - 1) // BK
    # One loop over taps and blocks of inputs, so that loads run ahead across taps too.
    for step in range(KH * KW * blocks):
        tap = step // blocks
        inputs = (step % blocks) * BK + tl.arange(0, BK)
        y = rows + tap // KW - KH // 2
        x = columns + tap % KW - KW // 2
        inside = ((y >= 0) & (y < H) & (x >= 0) & (x < W))[:, None]
        some = outputs[None, :] < COUT
        if CIN % BK != 0:
            inside = inside & (inputs < CIN)[None, :]
            some = some & (inputs < CIN)[:, None]
        a = tl.load(x_ptr + (y * W + x)[:, None] * CIN + inputs[None, :], mask=inside, other=0.0)
        b = tl.load(w_ptr + (tap * CIN + inputs)[:, None] * COUT + outputs[None, :], mask=some, other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc_type)
    return acc


@triton.jit
def biased_prelu(acc, b_ptr, s_ptr, outputs, COUT: tl.constexpr, PRELU: tl.constexpr):
    """acc + bias, and PReLU with a slope for each output channel where it is asked for."""
    acc += tl.load(b_ptr + outputs, mask=outputs < COUT, other=0.0)[None, :]
    if PRELU:
        slopes = tl.load(s_ptr + outputs, mask=outputs < COUT, other=0.0)[None, :]
        acc = tl.where(acc >= 0, acc, acc * slopes)
    return acc


@triton.jit
def to_int8(v):
    """clamp(rint(v), -127, 127) as int8, half to even, of float32 values.

    Beside 1.5 * 2^23, float32 has whole numbers only: the sum rounds as wanted, and the difference is exact.
    """
    v = tl.minimum(tl.maximum(v, -127.0), 127.0)
    return ((v + 12582912.0) - 12582912.0).to(tl.int8)
