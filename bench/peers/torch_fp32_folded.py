"""The fixed baseline `torch_bf16_folded` in float32: channels_last, batch normalisation folded, nothing else."""

from __future__ import annotations

import torch

from srgan_fast.bench.peers import Upscale
from srgan_fast.bench.peers.torch_bf16_folded import make_folded, probe
from srgan_fast.weights import Model

__all__ = ["make", "precision", "probe"]


def precision(device: str) -> str:
    """Its name says so."""
    return "fp32"


def make(model: Model, device: str) -> Upscale:
    """The network in float32 from end to end."""
    return make_folded(model, device, torch.float32)
