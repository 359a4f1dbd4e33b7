"""PyTorch as anyone would tune it for a CPU in a few lines: the fixed baseline that claims are held against.

bfloat16 weights, channels_last, batch normalisation folded, and nothing else: it is never tuned further, so that a
ratio over it means the same next year. `torch_fp32_folded` is the same in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.bench.device import float32, is_cuda
from srgan_fast.bench.peers import Upscale, need
from srgan_fast.bench.peers.network import Pixels
from srgan_fast.errors import BackendUnavailable
from srgan_fast.rewrite import folded
from srgan_fast.weights import Model


def probe() -> Ok | Unavailable:
    """It comes with torch."""
    return need("torch")


def precision(device: str) -> str:
    """Its name says so."""
    return "bf16"


def make(model: Model, device: str) -> Upscale:
    """The network in bfloat16 from end to end, its pixels in float32."""
    return make_folded(model, device, torch.bfloat16)


def make_folded(model: Model, device: str, dtype: torch.dtype) -> Upscale:
    """The folded network in channels_last, in one dtype from end to end."""
    if is_cuda(device):
        raise BackendUnavailable("this baseline is one for CPUs; take --device cpu")
    module = Pixels(folded(model.network).to(dtype), model, dtype).eval()
    module.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def upscale(frames: Tensor) -> Tensor:
        with torch.inference_mode(), float32(device):
            return module(frames).contiguous()

    return upscale
