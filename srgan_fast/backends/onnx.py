"""onnxruntime: the exported graph on its CPU or its CUDA provider, for portability. `auto` takes it only when all else
is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from srgan_fast.backends.eager import choose_precision
from srgan_fast.backends.exported import ExportedBackend, Run, imported, installed
from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.errors import BackendUnavailable
from srgan_fast.export import parts
from srgan_fast.weights import Model

_ELEMENTS = {torch.uint8: np.uint8, torch.float32: np.float32, torch.float16: np.float16}


def probe(device: str) -> Ok | Unavailable:
    """Whether onnxruntime is installed; imports nothing of it, so what its build can do shows later."""
    return installed("onnx", "onnxruntime", "onnx")


class ONNXBackend(ExportedBackend):
    """A model's parts in sessions of onnxruntime; any size of frame, with torch's number of threads.

    Raises:  UsageError for an unknown precision; BackendUnavailable where the package, its provider for the device or
             the precision is missing, or the picture is not eager's
    """

    name = "onnx"

    def __init__(self, model: Model, device: str, precision: str) -> None:
        answer = probe(device)
        if isinstance(answer, Unavailable):
            raise BackendUnavailable(f"backend onnx is not available: {answer.reason}; {answer.fix}")
        where = torch.device(device)
        if where.type == "cpu" and precision == "auto":
            precision = "fp32"
        precision = choose_precision(precision, device)
        if precision == "bf16":
            raise BackendUnavailable("backend onnx has no bf16: no provider of onnxruntime has it; take fp32")
        self._runtime = imported("onnx", "onnxruntime")
        self._provider = "CUDAExecutionProvider" if where.type == "cuda" else "CPUExecutionProvider"
        self._require(self._runtime.get_available_providers())
        made = parts.in_parts(model, "fp16" if precision == "fp16" else "fp32")
        super().__init__(
            model,
            device,
            precision,
            self._runner(made.trunk, where),
            {kind: self._runner(tail, where) for kind, tail in made.tails.items()},
            channels=made.channels,
            wants_frames=made.wants_frames,
            radius=made.radius,
            tail_radius=made.tail_radius,
            live=made.live,
            features=torch.float16 if precision == "fp16" else torch.float32,
        )

    def _require(self, providers: list[str]) -> None:
        """Refuse a build of the library, or a session, that lacks the provider: it would fall back silently."""
        if self._provider in providers:
            return
        if self._provider == "CUDAExecutionProvider":
            raise BackendUnavailable(
                f"CUDAExecutionProvider is not among the providers of onnxruntime ({', '.join(providers)}):"
                " onnxruntime (CPU) shadows onnxruntime-gpu, or its CUDA libraries are missing; pip uninstall both,"
                " then pip install onnxruntime-gpu"
            )
        raise BackendUnavailable(f"this onnxruntime has no {self._provider}, only {', '.join(providers)}; reinstall it")

    def _runner(self, part: bytes, where: torch.device) -> Run:
        """A part in a session of its own, as a function over tensors' memory."""
        options = self._runtime.SessionOptions()
        # Its arena keeps what a window took and has gaps: memory that no plan foresees.
        options.enable_cpu_mem_arena = False
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait by spinning would take the cores from torch's.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider: Any = self._provider
        index = where.index or 0
        if where.type == "cuda":
            # fp32 is fp32; and memory that is taken as it is needed, not doubled.
            provider = (provider, {"device_id": index, "use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"})
        session = self._runtime.InferenceSession(part, options, providers=[provider])
        self._require(session.get_providers()[:1])
        inputs, (output,) = [each.name for each in session.get_inputs()], session.get_outputs()

        def run(tensors: tuple[Tensor, ...], out: Tensor) -> None:
            binding = session.io_binding()
            for name, tensor in zip(inputs, tensors, strict=True):
                binding.bind_input(name, *_memory(tensor, index))
            binding.bind_output(output.name, *_memory(out, index))
            if where.type == "cuda":
                torch.cuda.current_stream(where).synchronize()  # its stream is not torch's
            session.run_with_iobinding(binding)

        return run


def _memory(tensor: Tensor, index: int) -> tuple[Any, ...]:
    return tensor.device.type, index, _ELEMENTS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()
