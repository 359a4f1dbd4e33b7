"""onnxruntime: the exported network on its CUDA provider, or on its CPU provider."""

from __future__ import annotations

import io
import warnings
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.bench.device import is_cuda
from srgan_fast.bench.peers import Upscale, need
from srgan_fast.bench.peers.network import pixels_of
from srgan_fast.errors import BackendUnavailable
from srgan_fast.weights import Model


def probe() -> Ok | Unavailable:
    """It needs onnx too, with which torch exports."""
    return need("onnxruntime", "onnx")


def precision(device: str) -> str:
    """fp16 where that pays, on a GPU."""
    return "fp16" if is_cuda(device) else "fp32"


def make(model: Model, device: str) -> Upscale:
    """A session over frames of any size; on a GPU frames and results stay there by I/O binding."""
    runtime: Any = import_module("onnxruntime")
    provider = "CUDAExecutionProvider" if is_cuda(device) else "CPUExecutionProvider"
    if provider not in runtime.get_available_providers():
        raise BackendUnavailable(
            f"this onnxruntime has no {provider}, only {', '.join(runtime.get_available_providers())};"
            " pip install onnxruntime-gpu"
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Unlike torch it pins its threads, which would fight with those of other candidates.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(_exported(model, device), options, providers=[provider])
    scale = model.info.scale

    def upscale(frames: Tensor) -> Tensor:
        n, height, width, _ = frames.shape
        out = frames.new_empty(n, height * scale, width * scale, 3)
        binding = session.io_binding()
        kind, index = frames.device.type, frames.device.index or 0
        for bind, name, tensor in ((binding.bind_input, "frames", frames), (binding.bind_output, "pixels", out)):
            bind(name, kind, index, np.uint8, tuple(tensor.shape), tensor.data_ptr())
        if kind == "cuda":
            torch.cuda.current_stream().synchronize()  # its stream is not ours
        session.run_with_iobinding(binding)
        return out

    return upscale


def _exported(model: Model, device: str) -> bytes:
    module = pixels_of(model, torch.float16 if is_cuda(device) else torch.float32)
    file = io.BytesIO()
    axes = {0: "n", 1: "h", 2: "w"}
    with warnings.catch_warnings():
        # The exporter by tracing needs onnx alone; torch warns that the other is the newer one.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(1, 16, 16, 3, dtype=torch.uint8),),
            cast(Any, file),  # its stub knows only names of files
            input_names=["frames"],
            output_names=["pixels"],
            dynamic_axes={"frames": axes, "pixels": axes},
            opset_version=18,
            dynamo=False,
        )
    return file.getvalue()
