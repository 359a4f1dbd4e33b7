"""OpenVINO on the CPU: converted from PyTorch in memory, in the precision that its plugin prefers there, or fp32."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.bench.device import is_cuda
from srgan_fast.bench.peers import Upscale, need
from srgan_fast.bench.peers.network import pixels_of
from srgan_fast.errors import BackendUnavailable
from srgan_fast.weights import Model


def probe() -> Ok | Unavailable:
    """One package."""
    return need("openvino")


def precision(device: str) -> str:
    """bf16 where the CPU has AMX, as our own backend would choose."""
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"


def make(model: Model, device: str) -> Upscale:
    """Compiled for each shape at its first frame."""
    if is_cuda(device):
        raise BackendUnavailable("OpenVINO has no NVIDIA GPU; take --device cpu")
    openvino: Any = import_module("openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tracing, whose outcome is held against plain PyTorch
        converted = openvino.convert_model(pixels_of(model), example_input=torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if precision(device) == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled: dict[tuple[int, ...], Any] = {}

    def upscale(frames: Tensor) -> Tensor:
        shape = tuple(frames.shape)
        if shape not in compiled:
            converted.reshape({0: list(shape)})
            compiled[shape] = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()
        result = compiled[shape].infer({0: frames.numpy()}, share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0].copy())

    return upscale
