"""torch.compile with max-autotune: what PyTorch makes of the network by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.bench.device import float32, is_cuda
from srgan_fast.bench.peers import Upscale, need
from srgan_fast.bench.peers.network import pixels_of
from srgan_fast.weights import Model


def probe() -> Ok | Unavailable:
    """It comes with torch, and needs Triton on a GPU or a C++ compiler on a CPU, which only a try can tell."""
    return need("torch")


def precision(device: str) -> str:
    """fp16 where that pays, on a GPU."""
    return "fp16" if is_cuda(device) else "fp32"


def make(model: Model, device: str) -> Upscale:
    """The network in channels_last, compiled in the first call."""
    half = is_cuda(device)
    module = pixels_of(model, torch.float16 if half else torch.float32).to(device)
    module.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(module, mode="max-autotune", dynamic=False)

    def upscale(frames: Tensor) -> Tensor:
        with torch.inference_mode(), float32(device):
            # A copy: the result of a captured graph is overwritten by its next run.
            return compiled(frames).clone(memory_format=torch.contiguous_format)

    return upscale
