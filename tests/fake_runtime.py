"""The half of the double of TensorRT that runs engines: onnxruntime over the memory behind bare addresses."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import torch

MAGIC = b"fake plan\n"
_WORKING = 64  # bytes a LR pixel that a context works in


@cache
def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@cache
def _scale(graph: bytes) -> int:
    session = _session(graph)
    (frames,) = session.get_inputs()
    nhwc = "uint8" in frames.type
    one = np.zeros((1, 1, 1, 3) if nhwc else (1, 3, 1, 1), np.uint8 if nhwc else np.float32)
    return int(session.run(None, {frames.name: one})[0].shape[1 if nhwc else 2])


class _Recording(threading.local):
    calls: list[Callable[[], None]] | None = None


_recording = _Recording()


def capture(work: Callable[[], object], device: torch.device, stream: object) -> Callable[[], None]:
    """Stands for `graph.capture`: a replay runs what was launched in the capture, over the addresses of then."""
    for _ in range(2):
        work()
    _recording.calls = calls = []
    try:
        work()
    finally:
        _recording.calls = None

    def replay() -> None:
        assert work  # as a real one, it keeps the work alive
        for call in calls:
            call()

    return replay


def called(fake: Any, target: Any, name: str, *arguments: Any) -> Any:
    """A callback, as the bindings make it: what it raises is printed, and lost."""
    if not target.made:
        fake.seen.misuses.append(f"{type(target).__name__} has no part in C++")
    try:
        return getattr(target, name)(*arguments)
    except BaseException as error:
        fake.seen.misuses.append(f"{name} has raised {error!r}")
        return None


def say(fake: Any, logger: Any, text: str, severity: str = "ERROR") -> None:
    called(fake, logger, "log", fake.ILogger.Severity[severity], text)


def add_runtime(fake: Any) -> None:
    seen, switches = fake.seen, fake.switches

    class IExecutionContext:
        def __init__(self, engine: Any) -> None:
            self.engine, self.profile = engine, 0
            self.shape: tuple[int, ...] = ()
            self.memory: tuple[int, int] | None = None
            self.addresses: dict[str, int] = {}
            self.busy = threading.Lock()

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            self.profile, self.shape = profile_index, ()
            return 0 <= profile_index < self.engine.num_optimization_profiles

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self.engine.about["profiles"][self.profile]
            if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
                say(fake, self.engine.logger, f"Error Code 3: {shape} does not satisfy any optimization profile")
                return False
            self.shape, self.memory = tuple(shape), None
            return True

        def infer_shapes(self) -> list[str]:
            if switches.infer_error:
                raise RuntimeError(switches.infer_error)
            return [] if self.shape else [self.engine.names[0]]

        def get_tensor_shape(self, name: str) -> Any:
            scale, shape = _scale(self.engine.graph), self.shape
            rows = self.engine.rows
            larger = (size * scale if rows <= i < rows + 2 else size for i, size in enumerate(shape))
            return fake.Dims(larger if name == self.engine.names[1] else shape)

        def update_device_memory_size_for_shapes(self) -> int:
            return _WORKING * math.prod(self.shape) // 3 if self.shape else 0

        def set_device_memory(self, memory: int, size: int) -> None:
            if memory % 256 or size < self.update_device_memory_size_for_shapes():
                seen.misuses.append(f"device memory at {memory} of {size} bytes")
            self.memory = (memory, size)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if name not in self.engine.names or name == switches.refused_address:
                say(fake, self.engine.logger, f"Error Code 3: no address can be set for {name}")
                return False
            self.addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            if switches.enqueue_fails or self.memory is None or len(self.addresses) < 2 or not self.shape:
                say(fake, self.engine.logger, "Error Code 3: the context is not ready to run, or CUDA has failed")
                return False
            if not self.busy.acquire(blocking=False):
                seen.misuses.append("two threads in one context")
                return False
            try:
                launch = _Launch(self, stream_handle)
                if _recording.calls is None:
                    launch()
                else:
                    _recording.calls.append(launch)
            finally:
                self.busy.release()
            return True

    class _Launch:
        """One execution, with the addresses as they were."""

        def __init__(self, context: Any, stream: int) -> None:
            self.engine, self.shape, self.memory, self.stream = context.engine, context.shape, context.memory, stream
            self.profile = context.profile
            self.addresses = [context.addresses[name] for name in context.engine.names]
            self.out_shape = tuple(context.get_tensor_shape(context.engine.names[1]))

        def __call__(self) -> None:
            frames, out = (
                _at(address, shape, self.engine.dtype)
                for address, shape in zip(self.addresses, (self.shape, self.out_shape), strict=True)
            )
            seen.executed.append((self.stream, self.shape, self.profile))
            # Neither the frames nor the result may lie where it works.
            working = _at(self.memory[0], (self.memory[1],), np.uint8)
            working[:] = 0xFF
            (picture,) = _session(self.engine.graph).run(None, {self.engine.names[0]: frames.copy()})
            out[...] = switches.damage(picture)
            working[:] = 0xFF

    class ICudaEngine:
        def __init__(self, about: dict[str, Any], graph: bytes, logger: Any) -> None:
            self.about, self.graph, self.logger = about, graph, logger
            ends = (_session(graph).get_inputs()[0], _session(graph).get_outputs()[0])
            self.names = [end.name for end in ends]
            self.kinds = ["UINT8" if "uint8" in end.type else "FLOAT" for end in ends]
            self.dtype = np.uint8 if self.kinds[0] == "UINT8" else np.float32
            self.rows = 1 if self.kinds[0] == "UINT8" else 2

        @property
        def num_io_tensors(self) -> int:
            return 2

        @property
        def num_optimization_profiles(self) -> int:
            return len(self.about["profiles"])

        def get_tensor_name(self, index: int) -> str:
            return self.names[index]

        def get_tensor_mode(self, name: str) -> Any:
            return fake.TensorIOMode.INPUT if name == self.names[0] else fake.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return fake.DataType[self.kinds[self.names.index(name)]]

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
            return [fake.Dims(shape) for shape in self.about["profiles"][profile_index]]

        def create_execution_context(self, strategy: Any = None) -> Any:
            if switches.no_context:
                say(fake, self.logger, "Error Code 2: OutOfMemory (Requested size was 9663676416 bytes.)")
                return None
            seen.contexts += 1
            seen.static_contexts += strategy is not fake.ExecutionContextAllocationStrategy.USER_MANAGED
            return IExecutionContext(self)

    class Runtime:
        engine_host_code_allowed = True

        def __init__(self, logger: Any) -> None:
            self.logger = logger
            seen.loggers.append(logger)

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            if self.engine_host_code_allowed:
                seen.misuses.append("code of the plan may run on the host")
            start = len(MAGIC)
            digest, body = serialized_engine[start : start + 64], serialized_engine[start + 64 :]
            if not serialized_engine.startswith(MAGIC) or hashlib.sha256(body).hexdigest().encode() != digest:
                return say(fake, self.logger, "Error Code 1: Serialization (magic tag does not match)")
            line, graph = body.split(b"\n", 1)
            about = json.loads(line)
            if about["version"] != fake.__version__:
                return say(fake, self.logger, f"Error Code 6: expecting library version {about['version']}")
            if about["gpu"] != fake.gpu:
                return say(fake, self.logger, f"Error Code 6: the engine was generated on {about['gpu']}")
            return ICudaEngine(about, graph, self.logger)

    fake.Runtime, fake.ICudaEngine, fake.IExecutionContext = Runtime, ICudaEngine, IExecutionContext


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype).reshape(shape)
