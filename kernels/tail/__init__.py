"""The network's last convolution, PixelShuffle and the picture in one: NHWC maps in, NHWC pixels out.

v = shuffle(act(conv(x) + bias + base)) * gain + offset, clamped to [0, 1] and rounded for integers by
floor(v * m + 0.5). It takes the maps before the last PixelShuffle (`rewrite.without_last_shuffle`). `base` is the LR
frame, enlarged by repeating pixels, which some networks are added to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels import architecture, hopper, launch, takes_reference
from srgan_fast.kernels.contract import LEVELS, expect, expect_pixels, output_for
from srgan_fast.kernels.tail import sm90
from srgan_fast.kernels.tail.cases import BENCH_CASES, CASES
from srgan_fast.kernels.tail.reference import tail as reference

__all__ = ["BENCH_CASES", "CASES", "bytes_moved", "flops", "reference", "row_sums_fit", "rows_weight", "run", "tail"]

_PIXELS = 64  # a program of the sum over rows


def rows_weight(weight: Tensor) -> Tensor | None:
    """The weights in the order of the two-kernel form, or None where one kernel is better.

    Two kernels pay where tensor cores want 64 outputs to be busy, which is sm_90 and sm_100, and where the sums of all
    rows fit into such a block.

    Shapes:  [k*k, cin, o] -> [k, cin, k*o]: the taps of a row together, the rows side by side
    """
    taps, cin, outputs = weight.shape
    size = round(taps**0.5)
    if launch.nearest_architecture(architecture(weight.device)) not in (90, 100) or size == 1 or size * outputs > 64:
        return None
    across = weight.view(size, size, cin, outputs).permute(1, 2, 0, 3)
    return across.reshape(size, cin, size * outputs).contiguous()


def row_sums_fit(h: int, w: int, sums: int) -> bool:
    """Whether 32-bit offsets reach the sums of a frame's rows, which can be more values than it has itself."""
    return h * w * sums <= launch.MOST_ELEMENTS


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor,
    r: int,
    dtype: torch.dtype,
    *,
    tanh: bool = False,
    base: Tensor | None = None,
    out: Tensor | None = None,
    row_weight: Tensor | None = None,
    row_sums: Tensor | None = None,
    backwards: bool = False,
) -> Tensor:
    """Finish NHWC frames by the fastest implementation that their device has.

    Who calls again and again keeps `row_weight`, which is what `rows_weight` gives, and `row_sums`, float32 memory of
    shape [n, h, w, k*3*r^2]. `backwards` lets some start with the last tile, which the op before has written last: a
    matter of caches only.

    Shapes:  x [n, h, w, cin], weight [k*k, cin, 3*r^2] (see `conv3x3.pack`), bias [3*r^2], gain and offset [3],
             base [n, h, w, 4], result [n, h*r, w*r, 3]
    Dtypes:  x, weight and base float16, bfloat16 or float32, all one; bias, gain and offset float32; result `dtype`:
             uint8, uint16 or floating-point; sums float32
    Raises:  ValueError for other shapes or dtypes
    """
    n, h, w, cin = expect("x", x, None, None, None, None)
    taps, _, outputs = expect("weight", weight, None, cin, 3 * r * r, dtype=x.dtype)
    size = round(taps**0.5)
    if size * size != taps or size % 2 == 0:
        raise ValueError(f"expected the weight of a square, odd kernel, got {taps} taps")
    expect_pixels("a result", dtype)
    for name, vector, count in (("bias", bias, outputs), ("gain", gain, 3), ("offset", offset, 3)):
        expect(name, vector, count, dtype=torch.float32)
    if base is not None:
        expect("base", base, n, h, w, 4, dtype=x.dtype)
    out = output_for(x, out, n, h * r, w * r, 3, dtype=dtype)
    x, weight = x.contiguous(), weight.contiguous()
    bias, gain, offset = bias.contiguous(), gain.contiguous(), offset.contiguous()
    base = None if base is None else base.contiguous()

    def portable(out: Tensor) -> Tensor:
        if takes_reference(x):
            return out.copy_(reference(x, weight, bias, gain, offset, r, dtype, tanh=tanh, base=base))
        return _triton(x, weight, bias, gain, offset, r, tanh, base, out, row_weight, row_sums)

    offer = sm90.offer(
        x, weight, bias, gain, offset, r, out, tanh=tanh, base=base, scratch=row_sums, backwards=backwards
    )
    return out if hopper.take(offer, portable, out) else portable(out)


def _triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor,
    r: int,
    tanh: bool,
    base: Tensor | None,
    out: Tensor,
    row_weight: Tensor | None,
    row_sums: Tensor | None,
) -> Tensor:
    from srgan_fast.kernels.tail import kernel

    n, h, w, cin = x.shape
    taps, _, outputs = weight.shape
    size = round(taps**0.5)
    picture = {"R": r, "TANH": tanh, "BASE": base is not None, "LEVELS": LEVELS.get(out.dtype, 0)}
    # v * m and then + 0.5, rounded twice as everywhere else: fused into one operation a tie may fall the other way.
    picture["enable_fp_fusion"] = False
    base = x if base is None else base
    row_weight = rows_weight(weight) if row_weight is None else row_weight
    if row_weight is not None and row_sums_fit(h, w, size * outputs):
        if row_sums is None:
            row_sums = x.new_empty(n, h, w, size * outputs, dtype=torch.float32)
        expect("row_weight", row_weight, size, cin, size * outputs, dtype=x.dtype)
        expect("row_sums", row_sums, n, h, w, size * outputs, dtype=torch.float32)
        if not (row_weight.is_contiguous() and row_sums.is_contiguous()):
            raise ValueError(
                "expected contiguous row_weight and row_sums,"
                f" got strides {list(row_weight.stride())} and {list(row_sums.stride())}"
            )
        tiles = launch.tiles_for(x, size * outputs)
        kernel.tail_rows_pointer[tiles.grid(n, h, w, tiles.blocks(size * outputs))](
            x,
            row_weight,
            row_sums,
            h,
            w,
            CIN=cin,
            COUT=size * outputs,
            SIZE=size,
            BK=tiles.inputs,
            **tiles.constants,
        )
        block = max(16, launch.power_of_two(outputs))
        kernel.tail_sum_pointer[(-(-h * w // _PIXELS), n)](
            row_sums, bias, gain, offset, base, out, h, w, SIZE=size, BP=_PIXELS, BN=block, num_warps=4, **picture
        )
        return out
    tiles = launch.tiles_for(x, outputs)
    kernel.tail_pointer[tiles.grid(n, h, w, tiles.blocks(outputs))](
        x,
        weight,
        bias,
        gain,
        offset,
        base,
        out,
        h,
        w,
        CIN=cin,
        SIZE=size,
        BK=tiles.inputs,
        **tiles.constants,
        **picture,
    )
    return out


@torch.library.custom_op("srgan_fast::tail", mutates_args=())
def tail(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gain: torch.Tensor,
    offset: torch.Tensor,
    r: int,
    dtype: torch.dtype,
    tanh: bool = False,
    base: torch.Tensor | None = None,
) -> torch.Tensor:
    """`run` as an operator that torch.compile and torch.export see as one node."""
    return run(x, weight, bias, gain, offset, r, dtype, tanh=tanh, base=base)


@tail.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor,
    r: int,
    dtype: torch.dtype,
    tanh: bool = False,
    base: Tensor | None = None,
) -> Tensor:
    n, h, w, _cin = x.shape
    return x.new_empty(n, h * r, w * r, 3, dtype=dtype)


def flops(x: Tensor, weight: Tensor, **_: object) -> int:
    """Multiplications and additions of the convolution alone, in the form in which it is given."""
    return 2 * x.shape[0] * x.shape[1] * x.shape[2] * weight.numel()


def bytes_moved(x: Tensor, weight: Tensor, r: int, dtype: torch.dtype, **_: object) -> int:
    """Bytes that must be read and written once."""
    written = x.shape[0] * x.shape[1] * x.shape[2] * 3 * r * r * dtype.itemsize
    return (x.numel() + weight.numel()) * x.element_size() + written
