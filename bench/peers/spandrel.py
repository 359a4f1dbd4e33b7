"""spandrel: the loader that other upscalers use, over plain torch; for those of our networks that it knows."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.bench.device import float32, is_cuda
from srgan_fast.bench.peers import Upscale, need
from srgan_fast.bench.peers.network import Pixels
from srgan_fast.errors import UsageError
from srgan_fast.model import SRVGGNetCompact
from srgan_fast.weights import Model


def probe() -> Ok | Unavailable:
    """It loads the networks of all its architectures at once, some of which need torchvision."""
    return need("spandrel", "torchvision")


def precision(device: str) -> str:
    """fp16 on a GPU, as its users run it."""
    return "fp16" if is_cuda(device) else "fp32"


def make(model: Model, device: str) -> Upscale:
    """Its own network with our weights, loaded as it loads a file."""
    if not isinstance(model.network, SRVGGNetCompact):
        raise UsageError(f"spandrel does not know {model.info.architecture}; take a compact network, such as realesr")
    # Its names are those of the published files: one flat list of layers.
    own = model.network.state_dict()
    last = len(model.network.body)
    state = {
        key.replace("output.", f"body.{last}.") if key.startswith("output.") else key: value
        for key, value in own.items()
    }
    spandrel: Any = import_module("spandrel")
    network: Any = spandrel.ModelLoader(device="cpu").load_from_state_dict(state).model
    dtype = torch.float16 if is_cuda(device) else torch.float32
    module = Pixels(network.to(dtype), model, dtype).eval().to(device)

    def upscale(frames: Tensor) -> Tensor:
        with torch.inference_mode(), float32(device):
            return module(frames).contiguous()

    return upscale
