"""PyTorch as it is, on any device: the network rewritten for inference, channels_last, the tail in bands.

The reduced precisions keep the first and the last convolution and the residual stream in float32: the first is
0.7% of the work, and the last writes the picture, where bfloat16 would round to less than eight bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from srgan_fast.backends.probe import Ok
from srgan_fast.community import bounds
from srgan_fast.errors import BackendUnavailable, UsageError
from srgan_fast.kernels.contract import LEVELS
from srgan_fast.kernels.parity import exact_float32
from srgan_fast.memory import LiveBytes
from srgan_fast.model import receptive_radius
from srgan_fast.rewrite import folded, in_place, without_last_shuffle
from srgan_fast.tiling import Footprint
from srgan_fast.weights import Model

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def probe(device: str) -> Ok:
    """Eager PyTorch runs wherever the package does."""
    return Ok()


def choose_precision(precision: str, device: str) -> str:
    """What `auto` means on a device: fp16 on a GPU, bf16 on a CPU with AMX, where it is measured to pay, else fp32.

    Raises:  UsageError for an unknown name; BackendUnavailable for fp16 on a CPU, and for int8
    """
    if precision == "auto" and device != "cpu":
        return "fp16"
    if precision == "auto":
        return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"
    if precision == "int8":
        raise BackendUnavailable("int8 is for the backend fused on an NVIDIA GPU; take fp32, bf16 or fp16")
    if precision not in _DTYPES:
        raise UsageError(f"expected a precision of auto, {', '.join(_DTYPES)}, int8, got {precision!r}")
    if precision == "fp16" and device == "cpu":
        raise BackendUnavailable("fp16 is not available on a CPU: it is slower than fp32 there; take fp32 or bf16")
    return precision


def quantise(v: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in [0, 1] (clamped) to pixels: floor(v*m + 0.5) for integers, unchanged floats otherwise.

    Dtypes:  float32 in; uint8, uint16 or a float type out
    """
    if dtype not in LEVELS:
        return v.clamp_(0, 1).to(dtype)
    levels = LEVELS[dtype]
    pixels = v.mul_(levels).clamp_(0, levels).add_(0.5).floor_()
    return pixels.to(torch.int32).to(dtype) if dtype == torch.uint16 else pixels.to(dtype)


class EagerBackend:
    """A rewritten copy of the network, run by PyTorch."""

    name = "eager"
    batches = False
    reusable_bytes = 0

    def __init__(self, model: Model, device: str, precision: str) -> None:
        self.precision = choose_precision(precision, device)
        self.device, self.info = torch.device(device), model.info
        network: Any = without_last_shuffle(folded(model.network))
        network = network.to(self.device, memory_format=torch.channels_last)
        if self.precision != "fp32":
            _lower(network, _DTYPES[self.precision])
        self.network: Any = in_place(network)
        self.low, self.high = (bound.to(self.device) for bound in bounds(model.info.output_range))
        self.footprint = self._measured(
            receptive_radius(model.network), receptive_radius(model.network, tail_only=True)
        )

    def run(self, frames: Tensor, out: Tensor, band: int) -> None:
        """See `Backend.run`; a band of the whole height is the whole frame at once."""
        height, scale, halo = frames.shape[1], self.info.scale, self.footprint.tail_radius
        with torch.inference_mode(), exact_float32(self.device):
            lr = self._network_input(frames)
            features = self.network.trunk(lr)
            for top in range(0, height, band):
                bottom = min(height, top + band)
                above, below = max(0, top - halo), min(height, bottom + halo)
                keep = slice((top - above) * scale, (bottom - above) * scale)
                pixels = self._pixels(features[:, :, above:below], lr[:, :, above:below], keep, out.dtype)
                out[:, top * scale : bottom * scale] = pixels

    def _pixels(self, features: Tensor, lr: Tensor, keep: slice, dtype: torch.dtype) -> Tensor:
        """The network's tail on some rows, of whose HR rows those in `keep` are returned as pixels."""
        hr = self.network.tail(features, lr)[:, :, keep].float()
        hr = (hr - self.low).div_(self.high - self.low)
        return quantise(hr, dtype).permute(0, 2, 3, 1)

    def _measured(self, radius: int | None, tail_radius: int | None) -> Footprint:
        size = 16
        frame = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=self.device)
        with torch.inference_mode(), LiveBytes() as live:
            lr = self._network_input(frame)
            features = self.network.trunk(lr)
            trunk, kept = live.peak, live.now
            live.reset()
            self._pixels(features, lr, slice(None), torch.uint8)
            tail = live.peak - kept
        pixels = size * size
        return Footprint(trunk / pixels, kept / pixels, tail / pixels, radius, tail_radius or 0)

    def _network_input(self, frames: Tensor) -> Tensor:
        # NHWC memory seen as NCHW is channels_last already.
        lr = frames.permute(0, 3, 1, 2).to(torch.float32)
        if frames.dtype in LEVELS:
            lr = lr / LEVELS[frames.dtype]
        if self.info.input_range == (0.0, 1.0):
            return lr
        low, high = (bound.to(lr.device) for bound in bounds(self.info.input_range))
        return lr * (high - low) + low


def _lower(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep the convolutions and PReLUs between the first and the last convolution in `dtype`, each casting its input.

    What is added to the float32 features of the head stays float32, so the residual stream does too.
    """

    def cast(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].to(dtype), *args[1:])

    leaves = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.PReLU))]
    last = max(i for i, leaf in enumerate(leaves) if isinstance(leaf, nn.Conv2d))
    start = 2 if isinstance(leaves[1], nn.PReLU) else 1
    for leaf in leaves[start:last]:
        leaf.to(dtype)
        leaf.register_forward_pre_hook(cast)
    leaves[last].register_forward_pre_hook(lambda _, args: (args[0].float(),))
