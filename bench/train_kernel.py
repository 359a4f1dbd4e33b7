"""How fast the layers of both networks are by the training kernels and by PyTorch's own functions, at training sizes.

Each side gets the same NHWC maps, which are channels_last to PyTorch, and is timed forward, and forward and backward.
A kernel stays in the networks only where it pays here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.bench import ceiling
from srgan_fast.bench.device import float32, is_cuda
from srgan_fast.bench.figures import timed_figures
from srgan_fast.bench.kernel import quality, timed
from srgan_fast.bench.record import latency, record
from srgan_fast.errors import BackendUnavailable
from srgan_fast.kernels import why_not_triton
from srgan_fast.kernels.batchnorm_act import batchnorm_act, channel_statistics
from srgan_fast.kernels.conv3x3_stats import conv3x3_stats
from srgan_fast.kernels.parity import Report, compare
from srgan_fast.kernels.pixelshuffle_prelu import pixelshuffle_prelu

# Frames at once, as in the paper.
BATCH = 16

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer as it stands in a network, on maps of `size` pixels a side and `inputs` channels.

    `outputs` None has no convolution before the normalisation. The activation has one slope, learned or not, or is
    none, and `skip` adds maps behind it.
    """

    size: int
    inputs: int
    outputs: int | None = None
    stride: int = 1
    slope: float | None = None
    learned: bool = False
    skip: bool = False

    def arguments(self, batch: int, device: str, dtype: torch.dtype) -> Tensors:
        """Maps and weights in the dtype, vectors in float32; the same numbers on every device."""
        random = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=random) * scale).to(device, dtype)

        found = {"x": normal(batch, self.size, self.size, self.inputs)}
        width, side = self.outputs or self.inputs, -(-self.size // self.stride)
        if self.outputs is not None:
            found["weight"] = normal(width, 3, 3, self.inputs, scale=(9 * self.inputs) ** -0.5)
        found["gamma"] = 1 + normal(width, scale=0.1).float()
        found["beta"] = normal(width, scale=0.1).float()
        if self.learned:
            found["slopes"] = torch.tensor([0.25], device=device)
        if self.skip:
            found["skip"] = normal(batch, side, side, width)
        return found

    def by_torch(self, given: Tensors) -> Tensor:
        """The layer by PyTorch's own functions."""
        y = given["x"].permute(0, 3, 1, 2)
        if self.outputs is not None:
            y = F.conv2d(y, given["weight"].permute(0, 3, 1, 2), stride=self.stride, padding=1)
        y = F.batch_norm(y, None, None, given["gamma"], given["beta"], training=True)
        if self.learned:
            y = F.prelu(y, given["slopes"].to(y.dtype))
        elif self.slope is not None:
            y = F.leaky_relu(y, self.slope)
        y = y.permute(0, 2, 3, 1)
        return y + given["skip"] if self.skip else y

    def by_kernels(self, given: Tensors) -> Tensor:
        """The layer by the training kernels."""
        y = given["x"]
        if self.outputs is None:
            mean, variance = channel_statistics(y.detach())
        else:
            y, mean, variance = conv3x3_stats(y, given["weight"], None, self.stride)
        slope = 1.0 if self.slope is None else self.slope
        vectors = (given["gamma"], given["beta"], given.get("slopes"))
        return batchnorm_act(y, mean, variance, *vectors, given.get("skip"), slope)


@dataclass(frozen=True)
class Shuffle:
    """A sub-pixel step behind its convolution: PixelShuffle by 2 and PReLU with one slope."""

    size: int
    inputs: int

    def arguments(self, batch: int, device: str, dtype: torch.dtype) -> Tensors:
        """Maps in the dtype, the slope in float32; the same numbers on every device."""
        random = torch.Generator().manual_seed(0)
        x = torch.randn(batch, self.size, self.size, self.inputs, generator=random)
        return {"x": x.to(device, dtype), "slopes": torch.tensor([0.25], device=device)}

    def by_torch(self, given: Tensors) -> Tensor:
        """The layer by PyTorch's own functions."""
        y = F.pixel_shuffle(given["x"].permute(0, 3, 1, 2), 2)
        return F.prelu(y, given["slopes"].to(y.dtype)).permute(0, 2, 3, 1)

    def by_kernels(self, given: Tensors) -> Tensor:
        """The layer by the training kernels."""
        return pixelshuffle_prelu(given["x"], given["slopes"].expand(self.inputs // 4), 2)


# The shapes of a 96x96 crop.
PAIRS: dict[str, Layer | Shuffle] = {
    "BN, PReLU, 64": Layer(24, 64, slope=0.25, learned=True),
    "BN, skip, 64": Layer(24, 64, skip=True),
    "BN, LeakyReLU, 64": Layer(48, 64, slope=0.2),
    "BN, LeakyReLU, 256": Layer(24, 256, slope=0.2),
    "BN, LeakyReLU, 512": Layer(6, 512, slope=0.2),
    "convolution, BN, PReLU, 64 to 64": Layer(24, 64, 64, slope=0.25, learned=True),
    "convolution, BN, skip, 64 to 64": Layer(24, 64, 64, skip=True),
    "convolution, BN, LeakyReLU, 64 to 64, stride 2": Layer(96, 64, 64, stride=2, slope=0.2),
    "convolution, BN, LeakyReLU, 64 to 128": Layer(48, 64, 128, slope=0.2),
    "convolution, BN, LeakyReLU, 128 to 256": Layer(24, 128, 256, slope=0.2),
    "PixelShuffle, PReLU, LR": Shuffle(24, 256),
    "PixelShuffle, PReLU, twice LR": Shuffle(48, 256),
}


def measure(name: str, runs: int, device: str, *, batch: int = BATCH) -> list[dict[str, Any]]:
    """Time one of `PAIRS`, PyTorch first: bf16 on a GPU, elsewhere fp32.

    Raises:  BackendUnavailable where the kernels do not run
    """
    reason = why_not_triton(torch.device(device))
    if reason is not None:
        raise BackendUnavailable(f"no training kernels to time: {reason[0]}; {reason[1]}")
    layer = PAIRS[name]
    precision, dtype = ("bf16", torch.bfloat16) if is_cuda(device) else ("fp32", torch.float32)
    given = layer.arguments(batch, device, dtype)
    sides = {"torch": layer.by_torch, "kernels": layer.by_kernels}
    reports = {impl: _report(side, layer, given, dtype) for impl, side in sides.items()}
    found: list[dict[str, Any]] = []
    for part, both in (("forward", False), ("forward and backward", True)):
        with float32(device):
            times = timed({impl: _call(side, given, both=both) for impl, side in sides.items()}, runs, device)
        raw: list[dict[str, Any]] = [
            {
                "suite": "train_kernel",
                "impl": impl,
                "case": part,
                "dtype": precision,
                "baseline": "torch",
                "baseline_dtype": precision,
                "device": torch.device(device).type,
                "shape": {"n": batch, "h": layer.size, "w": layer.size},
                "latency_ms": latency(times.samples_ms[impl]),
                "timing": {"calls": times.calls[impl], "l2": "not flushed"},
                "peak_bytes": times.peaks[impl],
                "bytes": _bytes(layer, given, both=both),
                "quality": reports[impl],
            }
            for impl in sides
        ]
        for one in raw:
            passed = one["quality"]["gate"] == "pass"
            derived = timed_figures(one, raw, ceiling.measure(device)) if passed else {}
            fields = {key: value for key, value in one.items() if key != "suite"}
            found.append(record("train_kernel", name, **fields, derived=derived))
    return found


def exercise(device: str) -> None:
    """Forward and backward of each layer by the kernels, on small maps: for tools that watch memory."""
    for layer in PAIRS.values():
        _results(layer.by_kernels, replace(layer, size=7).arguments(2, device, torch.bfloat16), torch.bfloat16)


def _call(side: Callable[[Tensors], Tensor], given: Tensors, *, both: bool) -> Callable[[], object]:
    if not both:

        def forward() -> object:
            with torch.no_grad():
                return side(given)

        return forward
    leaves = _leaves(given)
    dy = torch.randn_like(side(leaves))
    return lambda: torch.autograd.grad(side(leaves), list(leaves.values()), dy)


def _leaves(given: Tensors) -> Tensors:
    return {name: value.detach().clone().requires_grad_() for name, value in given.items()}


def _report(
    side: Callable[[Tensors], Tensor], layer: Layer | Shuffle, given: Tensors, dtype: torch.dtype
) -> dict[str, Any]:
    """How far the result and each gradient are from float64, by the rule for fast paths; of all, the worst."""
    double = {name: value.double() for name, value in given.items()}
    truth, plain = _results(layer.by_torch, double, dtype), _results(layer.by_torch, given, dtype)
    fast = plain if side == layer.by_torch else _results(side, given, dtype)
    reports = [
        compare(*each, dtype, floor=_floor(each[2], truth[0], dtype)) for each in zip(fast, plain, truth, strict=True)
    ]
    worst: Report = max(reports, key=lambda report: (not report.passed, report.max_error / report.max_allowed))
    return quality(worst)


def _floor(gradient: Tensor, result: Tensor, dtype: torch.dtype) -> float | None:
    """That of a sum over many values of about 1, whose signs cancel: it is rounded as often as they are many."""
    count = result.numel() // gradient.numel()
    return 4 * torch.finfo(dtype).eps * count**0.5 if count > 1 else None


def _results(side: Callable[[Tensors], Tensor], given: Tensors, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradient of each argument; what flows back is rounded to the dtype, in float64 too."""
    leaves = _leaves(given)
    y = side(leaves)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(y.device, y.dtype)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), dy)]


def _bytes(layer: Layer | Shuffle, given: Tensors, *, both: bool) -> int:
    """What has to be read and written once: arguments and result, and each again as a gradient."""
    with torch.no_grad():
        result = layer.by_torch(given).nbytes
    return (1 + both) * (result + sum(value.nbytes for value in given.values()))
