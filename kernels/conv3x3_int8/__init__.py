"""A 3x3 convolution of 8-bit integers in one pass over NHWC frames; with r > 1 a sub-pixel stage.

The sums are exact in int32. What follows is float32, one rounding an operation, none of them fused, so that every
implementation gives the same bits:

    v = acc * gain[c];  v = v + bias[c];  v = v if v >= 0 else v * slopes[c];  v = v + residual

PixelShuffle(r) moves values and changes none. A floating-point result is v rounded to its dtype. An int8 result is
clamp(rint(v), -127, 127), half to even: its scale has been folded into gain and bias (`pack`), which PReLU lets pass.
`quantised` is a second result beside a floating-point one: clamp(rint(float32(y) * inverse), -127, 127) of the y that
was stored, and not of v before its rounding. It is so what `quantise_int8` makes of the first result, to the bit, and
an implementation may do the two in one pass or in two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels import hopper, launch, takes_reference
from srgan_fast.kernels.contract import expect, output_for
from srgan_fast.kernels.conv3x3_int8 import sm90
from srgan_fast.kernels.conv3x3_int8.cases import BENCH_CASES, CASES
from srgan_fast.kernels.conv3x3_int8.reference import conv3x3_int8 as reference
from srgan_fast.kernels.quantise_int8 import LEVELS

__all__ = [
    "BENCH_CASES",
    "CASES",
    "EXACT",
    "RESULTS",
    "bytes_moved",
    "conv3x3_int8",
    "flops",
    "pack",
    "reference",
    "run",
    "why_not",
]

# Held to the reference bit for bit; and the arguments that are results too.
EXACT = True
RESULTS = ("quantised",)

# 9 * 112 * 127 * 127 < 2^24: a sum is exact in float32 as well, in which it is scaled.
MOST_INPUTS = 112


def why_not(cin: int) -> str | None:
    """Why convolutions of so many inputs have no int8 kernel; None if they have one."""
    if cin % 16 == 0 and 0 < cin <= MOST_INPUTS:
        return None
    return f"int8 takes a multiple of 16 inputs, at most {MOST_INPUTS}, not {cin}"


def pack(weight: Tensor, bias: Tensor, scale: float, result_scale: float = 1.0, r: int = 1) -> dict[str, Tensor]:
    """The weight, gain and bias of `run` for a convolution of floats: int8 weights with one scale an output channel.

    A channel's largest weight is 127 steps.

    `scale` is what one step of the input is worth; `result_scale` that of an int8 result, 1 for a floating-point one.

    Shapes:  weight [r^2*c, cin, 3, 3], bias [r^2*c] -> weight [9, cin, r^2*c], gain and bias [r^2*c], columns in the
             order (row, column, channel) of the sub-pixels
    Dtypes:  computed in float64, gain and bias rounded once to float32
    """
    outputs, cin, _, _ = weight.shape
    wide = weight.double().reshape(outputs, cin, 9)
    steps = wide.abs().amax((1, 2)) / LEVELS
    steps = torch.where(steps > 0, steps, torch.ones_like(steps))  # weights that are all zero
    whole = _rounded(wide / steps.view(-1, 1, 1)).clamp(-LEVELS, LEVELS).to(torch.int8)
    columns = whole.reshape(outputs // (r * r), r * r, cin, 9).permute(3, 2, 1, 0).reshape(9, cin, outputs)

    def ordered(vector: Tensor) -> Tensor:
        return vector.float().reshape(-1, r * r).t().reshape(-1).contiguous()

    gain, offset = steps * scale / result_scale, bias.double() / result_scale
    return {"weight": columns.contiguous(), "gain": ordered(gain), "bias": ordered(offset)}


def _rounded(kernels: Tensor) -> Tensor:
    """Whole numbers, each next to its own, whose sum over a kernel is next to the kernel's: [o, i, taps].

    Maps are smooth, so errors of one sign add up over the taps, and in a bright frame over the inputs too: it is the
    sum that shows in the picture. The weights with the largest remainders go up.
    """
    low = kernels.floor()
    remainders = kernels - low
    up = torch.round(remainders.sum(-1, keepdim=True))
    rank = remainders.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return low + (rank < up)


def run(
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    slopes: Tensor | None = None,
    residual: Tensor | None = None,
    quantised: Tensor | None = None,
    inverse: float = 1.0,
    r: int = 1,
    *,
    out: Tensor | None = None,
    backwards: bool = False,
) -> Tensor:
    """Convolve NHWC frames by the fastest implementation that their device has; returns the result in `dtype`.

    `out` may be the residual's own memory; `quantised` is written to and overlaps nothing. `inverse` is rounded to
    float32. Values that are not finite come from the residual alone; their int8 is not defined. For `backwards` see
    `conv3x3`.

    Shapes:  x [n, h, w, cin], weight [9, cin, r^2*c], gain and bias [r^2*c], slopes [c],
             residual, quantised and result [n, h*r, w*r, c]; cin a multiple of 16 up to 112
    Dtypes:  x and weight int8 within [-127, 127]; gain, bias and slopes float32; result int8 or float16, bfloat16,
             float32; residual as the result, quantised int8, both only with a floating-point result; sums int32
    Raises:  ValueError for other shapes or dtypes
    """
    n, h, w, cin = expect("x", x, None, None, None, None, dtype=torch.int8)
    if (reason := why_not(cin)) is not None:
        raise ValueError(f"{reason}; take conv3x3")
    outputs = weight.shape[-1]
    expect("weight", weight, 9, cin, outputs, dtype=torch.int8)
    if r < 1 or outputs % (r * r):
        raise ValueError(f"expected a multiple of r^2 = {r * r} outputs, got {outputs}")
    channels = outputs // (r * r)
    for name, vector, size in (("gain", gain, outputs), ("bias", bias, outputs), ("slopes", slopes, channels)):
        if vector is not None:
            expect(name, vector, size, dtype=torch.float32)
    if dtype not in (torch.int8, torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"expected a result in int8, float16, bfloat16 or float32, got {dtype}")
    shape = (n, h * r, w * r, channels)
    if dtype == torch.int8 and not (residual is None and quantised is None):
        raise ValueError("expected a floating-point result beside residual and quantised, got torch.int8")
    if residual is not None:
        expect("residual", residual, *shape, dtype=dtype)
    if quantised is not None:
        expect("quantised", quantised, *shape, dtype=torch.int8)
        if not quantised.is_contiguous():
            raise ValueError(f"expected a contiguous quantised, got strides {list(quantised.stride())}")
    out = output_for(x, out, *shape, dtype=dtype)
    x, weight, gain, bias = x.contiguous(), weight.contiguous(), gain.contiguous(), bias.contiguous()
    slopes = None if slopes is None else slopes.contiguous()
    residual = None if residual is None else residual.contiguous()

    def portable(out: Tensor) -> Tensor:
        if takes_reference(x):
            return out.copy_(reference(x, weight, gain, bias, dtype, slopes, residual, quantised, inverse, r))
        return _triton(x, weight, gain, bias, slopes, residual, quantised, inverse, r, out)

    offer = sm90.offer(x, weight, gain, bias, slopes, residual, quantised, inverse, r, out, backwards=backwards)
    return out if hopper.take(offer, portable, out) else portable(out)


def _triton(
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    slopes: Tensor | None,
    residual: Tensor | None,
    quantised: Tensor | None,
    inverse: float,
    r: int,
    out: Tensor,
) -> Tensor:
    from srgan_fast.kernels.conv3x3_int8 import kernel

    n, h, w, cin = x.shape
    channels = out.shape[-1]
    tiles = launch.tiles_for(x, channels)
    kernel.conv3x3_int8_pointer[tiles.grid(n, h, w, r * r * tiles.blocks(channels))](
        x,
        weight,
        gain,
        bias,
        bias if slopes is None else slopes,
        out if residual is None else residual,
        out,
        out if quantised is None else quantised,
        inverse,
        h,
        w,
        CIN=cin,
        C=channels,
        R=r,
        PRELU=slopes is not None,
        RESIDUAL=residual is not None,
        QUANTISED=quantised is not None,
        BK=tiles.inputs,
        # A product and a sum that are fused round once where the contract says twice.
        enable_fp_fusion=False,
        **tiles.constants,
    )
    return out


@torch.library.custom_op("srgan_fast::conv3x3_int8", mutates_args=("quantised",))
def conv3x3_int8(
    x: torch.Tensor,
    weight: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    dtype: torch.dtype,
    slopes: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    quantised: torch.Tensor | None = None,
    inverse: float = 1.0,
    r: int = 1,
) -> torch.Tensor:
    """`run` as an operator that torch.compile and torch.export see as one node."""
    return run(x, weight, gain, bias, dtype, slopes, residual, quantised, inverse, r)


@conv3x3_int8.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    slopes: Tensor | None = None,
    residual: Tensor | None = None,
    quantised: Tensor | None = None,
    inverse: float = 1.0,
    r: int = 1,
) -> Tensor:
    n, h, w, _cin = x.shape
    return x.new_empty(n, h * r, w * r, weight.shape[-1] // (r * r), dtype=dtype)


def flops(x: Tensor, weight: Tensor, **_: object) -> int:
    """Multiplications and additions of the convolution alone."""
    return 2 * x.shape[0] * x.shape[1] * x.shape[2] * weight.numel()


def bytes_moved(
    x: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    residual: Tensor | None = None,
    quantised: Tensor | None = None,
    **_: object,
) -> int:
    """Bytes that must be read and written once."""
    written = x.shape[0] * x.shape[1] * x.shape[2] * weight.shape[-1]
    a_value = dtype.itemsize * (1 if residual is None else 2) + (0 if quantised is None else 1)
    return x.numel() + weight.numel() + written * a_value
