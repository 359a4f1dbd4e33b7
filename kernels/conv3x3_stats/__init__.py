"""A 3x3 convolution and the batch statistics of its result in one pass over NHWC frames: the step before a batch norm.

y = conv(x) + bias, zero padding of one pixel; mean and biased variance of each of its channels over all frames, of the
values before they are rounded to y's dtype. The statistics are functions of y for which the normalisation's own
gradient accounts (see `batchnorm_act`): here they are constants, and y alone is differentiated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srgan_fast.kernels import architecture, launch, takes_reference
from srgan_fast.kernels.contract import expect, expect_batch, output_for
from srgan_fast.kernels.conv3x3_stats.cases import BENCH_CASES, CASES
from srgan_fast.kernels.conv3x3_stats.reference import conv3x3_stats as reference

__all__ = ["BENCH_CASES", "CASES", "RESULTS", "bytes_moved", "choose", "conv3x3_stats", "flops", "reference", "run"]

# What `run` and `reference` write to besides their result.
RESULTS = ("mean", "variance")


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve NHWC frames by the fastest implementation that their device has, and write the statistics.

    Shapes:  x [n, h, w, cin], weight [cout, 3, 3, cin], bias, mean and variance [cout], stride 1 or 2,
             result [n, ceil(h/stride), ceil(w/stride), cout]
    Dtypes:  x, weight and result float16, bfloat16 or float32, all one; bias, mean and variance float32; sums float32
    Raises:  ValueError for other shapes or dtypes
    """
    n, h, w, cin = expect("x", x, None, None, None, None)
    cout, _, _, _ = expect("weight", weight, None, 3, 3, cin, dtype=x.dtype)
    if stride not in (1, 2):
        raise ValueError(f"expected stride 1 or 2, got {stride}")
    wide = torch.promote_types(x.dtype, torch.float32)
    for name, vector in (("bias", bias), ("mean", mean), ("variance", variance)):
        if vector is not None:
            expect(name, vector, cout, dtype=wide)
        if name != "bias" and vector is not None and not vector.is_contiguous():
            raise ValueError(f"expected contiguous mean and variance, got strides {vector.stride()}")
    out = output_for(x, out, n, -(-h // stride), -(-w // stride), cout)
    expect_batch("x", x)
    expect_batch("the result", out)
    if takes_reference(x):
        return out.copy_(reference(x, weight, bias, stride, mean, variance))
    mean, variance = (out.new_empty(cout, dtype=wide) if given is None else given for given in (mean, variance))
    return _triton(x.contiguous(), weight.contiguous(), bias, stride, mean, variance, out)


def choose(processors: int, pixels: int, cin: int, cout: int, itemsize: int, sm: int = 90) -> dict[str, int]:
    """The cut for a batch of so many result pixels: blocks of pixels, outputs and inputs, warps, stages.

    The least that a group of warps multiplies on Hopper is 64 pixels. Where blocks of 128 would leave multiprocessors
    idle they are halved, then the outputs.
    """
    block = 128
    outputs = max(16, min(64, launch.power_of_two(cout)))
    inputs = max(16, min(64 if itemsize == 2 else 32, launch.power_of_two(cin)))
    while block > 64 and -(-pixels // block) * -(-cout // outputs) < processors:
        block //= 2
    while outputs > 32 and -(-pixels // block) * -(-cout // outputs) < processors:
        outputs //= 2
    # Operands of float32, and masks of inputs that fill no block, need the registers that more loads in flight would.
    stages = 2 if itemsize > 2 or cin % inputs else 4 if sm in (90, 100) else 3
    return {"BP": block, "BN": outputs, "BK": inputs, "num_warps": block // 16, "num_stages": stages}


def _triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    mean: Tensor,
    variance: Tensor,
    out: Tensor,
) -> Tensor:
    from srgan_fast.kernels.conv3x3_stats import kernel

    _, h, w, cin = x.shape
    n, high, wide, cout = out.shape
    pixels = n * high * wide
    sm = launch.nearest_architecture(architecture(x.device))
    cut = choose(launch.processors(x.device), pixels, cin, cout, x.element_size(), sm)
    parts = x.new_empty(-(-pixels // cut["BP"]), 2, cout, dtype=torch.float32)
    kernel.conv3x3_stats_pointer[(len(parts), -(-cout // cut["BN"]))](
        x,
        weight,
        parts if bias is None else bias.contiguous(),
        out,
        parts,
        pixels,
        h,
        w,
        high,
        wide,
        CIN=cin,
        COUT=cout,
        STRIDE=stride,
        BIAS=bias is not None,
        **cut,
    )
    launch.join_parts(kernel.join_parts_pointer, parts, pixels, cut["BP"], mean, variance)
    return out


@torch.library.custom_op("srgan_fast::conv3x3_stats", mutates_args=())
def conv3x3_stats(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`run` as an operator with gradients -> y, mean, variance; the last two are constants to autograd."""
    mean, variance = (x.new_empty(len(weight), dtype=torch.promote_types(x.dtype, torch.float32)) for _ in range(2))
    return run(x, weight, bias, stride, mean, variance), mean, variance


@conv3x3_stats.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    n, h, w, _cin = x.shape
    cout = weight.shape[0]
    mean, variance = (x.new_empty(cout, dtype=torch.promote_types(x.dtype, torch.float32)) for _ in range(2))
    return x.new_empty(n, (h + stride - 1) // stride, (w + stride - 1) // stride, cout), mean, variance


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, ctx.stride = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)
    ctx.mark_non_differentiable(output[1], output[2])


def _differentiate(
    ctx: Any, dy: Tensor, _mean: object, _variance: object
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    """By PyTorch's own convolutions: NHWC maps are channels_last to it, so nothing is copied."""
    x, weight = ctx.saved_tensors
    stride, cout = [ctx.stride] * 2, weight.shape[0]
    biased = ctx.bias_dtype is not None
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        dy.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        weight.permute(0, 3, 1, 2),
        [cout] if biased else None,
        stride,
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
        [*ctx.needs_input_grad[:2], biased and ctx.needs_input_grad[2]],
    )
    return (
        None if dx is None else dx.permute(0, 2, 3, 1),
        None if dweight is None else dweight.permute(0, 2, 3, 1),
        None if dbias is None else dbias.to(ctx.bias_dtype),
        None,
    )


conv3x3_stats.register_autograd(_differentiate, setup_context=_save)


def flops(x: Tensor, weight: Tensor, stride: int = 1, **_: object) -> int:
    """Multiplications and additions of the convolution alone."""
    return 2 * _pixels(x, stride) * weight.numel()


def bytes_moved(x: Tensor, weight: Tensor, stride: int = 1, **_: object) -> int:
    """Bytes that must be read and written once."""
    return (x.numel() + weight.numel() + _pixels(x, stride) * len(weight)) * x.element_size()


def _pixels(x: Tensor, stride: int) -> int:
    n, h, w, _ = x.shape
    return n * -(-h // stride) * -(-w // stride)
