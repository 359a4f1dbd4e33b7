"""A double of NVIDIA's `tensorrt`, of either generation, whose engines compute with onnxruntime on the CPU.

It has the names that we use and the habits that bite: removed flags are missing, the number of STRONGLY_TYPED differs,
plans and timing caches of another version or GPU are refused, failures are None or False and a line in the log, and a
context knows nothing but addresses. What our code does wrong with it ends in `misuses`, or in wrong pixels.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import importlib.machinery
import json
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from srgan_fast.tensorrt import library

VERSIONS = ("10.13.3.9", "11.4.0.106")
GPU = SimpleNamespace(
    name="Fake GPU", major=9, minor=0, multi_processor_count=4, total_memory=1 << 30, L2_cache_size=1 << 20
)
_MAGIC, _TIMING = b"fake plan\n", b"fake timing\n"
_WORKING = 64  # bytes a LR pixel that a context works in


@dataclass
class Switches:
    """What shall go wrong."""

    build_error: str = ""  # logged, and no plan comes
    parse_errors: tuple[str, ...] = ()
    profile_refused: bool = False
    no_context: bool = False
    refused_address: str = ""  # the tensor whose address is not taken
    enqueue_fails: bool = False
    infer_error: str = ""
    loses_types: bool = False  # networks come out in float32, whatever the graph says
    slow_step_s: float = 0.0
    on_step: Callable[[int], None] = lambda i: None
    damage: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda picture: picture


@dataclass
class Seen:
    """What our code did."""

    builds: list[dict[str, Any]] = field(default_factory=list)
    timed: int = 0  # layers that no timing cache knew
    loggers: list[Any] = field(default_factory=list)
    contexts: int = 0
    executed: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)  # stream, shape
    static_contexts: int = 0
    misuses: list[str] = field(default_factory=list)


class _Enum(enum.Enum):
    """As pybind11 makes them: equal to no number, but with one."""

    def __int__(self) -> int:
        return int(self.value)


def _enum(name: str, *members: str, start: int = 0, **numbered: int) -> Any:
    return _Enum(name, dict(zip(members, range(start, start + len(members)), strict=True)) | numbered)


class IHostMemory(bytearray):
    """Has the buffer protocol, and is not bytes."""


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


def install(monkeypatch: pytest.MonkeyPatch, version: str = VERSIONS[1]) -> Any:
    """Put a double in the place of the library, and let the CPU pass for a GPU of NVIDIA's."""
    fake = make(version)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(library, "_is_nvidia", lambda device: True)
    monkeypatch.setattr(library, "_logger", None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: GPU)
    return fake


def make(version: str = VERSIONS[1], gpu: str = GPU.name) -> Any:
    """The module: `switches` make it fail, `seen` is what was done with it."""
    fake: Any = ModuleType("tensorrt")
    fake.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    fake.__version__ = version
    fake.switches, fake.seen, fake.gpu = Switches(), Seen(), gpu
    old = version.startswith("10.")
    _add_enums(fake, old)
    _add_callbacks(fake)
    _add_builder(fake, old)
    _add_runtime(fake)
    return fake


def _add_enums(fake: Any, old: bool) -> None:
    creation = ("EXPLICIT_BATCH", "STRONGLY_TYPED") if old else ("STRONGLY_TYPED",)
    fake.NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", *creation)
    removed = {"FP16": 0, "INT8": 1, "BF16": 17, "OBEY_PRECISION_CONSTRAINTS": 9} if old else {}
    fake.BuilderFlag = _enum(
        "BuilderFlag", TF32=6, VERSION_COMPATIBLE=13 if old else 12, EXCLUDE_LEAN_RUNTIME=14 if old else 13, **removed
    )
    fake.DataType = _enum("DataType", "FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8")
    fake.TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")
    fake.MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE")
    fake.HardwareCompatibilityLevel = _enum(
        "HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"
    )
    fake.ExecutionContextAllocationStrategy = _enum(
        "ExecutionContextAllocationStrategy", "STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"
    )
    fake.PreviewFeature = _enum("PreviewFeature", "ALIASED_PLUGIN_IO_10_03", "RUNTIME_ACTIVATION_RESIZE_10_10")


def _add_callbacks(fake: Any) -> None:
    class Trampoline:
        made = False

        def __init__(self) -> None:
            self.made = True

    class ILogger(Trampoline):
        Severity = _enum("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

    class IProgressMonitor(Trampoline):
        pass

    fake.ILogger, fake.IProgressMonitor = ILogger, IProgressMonitor
    fake.Dims = type("Dims", (tuple,), {})


def _called(fake: Any, target: Any, name: str, *arguments: Any) -> Any:
    """A callback, as the bindings make it: what it raises is printed, and lost."""
    if not target.made:
        fake.seen.misuses.append(f"{type(target).__name__} has no part in C++")
    try:
        return getattr(target, name)(*arguments)
    except BaseException as error:
        fake.seen.misuses.append(f"{name} has raised {error!r}")
        return None


def _say(fake: Any, logger: Any, text: str, severity: str = "ERROR") -> None:
    _called(fake, logger, "log", fake.ILogger.Severity[severity], text)


def _add_builder(fake: Any, old: bool) -> None:
    seen, switches = fake.seen, fake.switches

    class INetworkDefinition:
        graph: bytes | None = None

        def __init__(self, strongly_typed: bool) -> None:
            self.strongly_typed = strongly_typed

        def read(self, graph: bytes) -> None:
            model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
            onnx.checker.check_model(model)
            kinds = {onnx.TensorProto.FLOAT16: "HALF", onnx.TensorProto.UINT8: "UINT8"}
            typed = self.strongly_typed and not switches.loses_types

            def tensor(value: Any) -> Any:
                kind = kinds.get(value.type.tensor_type.elem_type, "FLOAT")
                kind = "FLOAT" if kind == "HALF" and not typed else kind
                return SimpleNamespace(name=value.name, dtype=fake.DataType[kind])

            self.inputs = [tensor(value) for value in model.graph.input]
            self.layers = [tensor(value) for value in model.graph.value_info]
            self.graph = graph

        @property
        def num_layers(self) -> int:
            return len(self.layers)

        def get_layer(self, index: int) -> Any:
            return SimpleNamespace(get_output=lambda i: self.layers[index])

        def get_input(self, index: int) -> Any:
            return self.inputs[index]

    class IOptimizationProfile:
        shapes: tuple[Any, ...] = ()

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            assert all(type(each) is fake.Dims for each in (min, opt, max))
            self.shapes = (tuple(min), tuple(opt), tuple(max))

    class ITimingCache:
        def __init__(self, about: dict[str, Any]) -> None:
            self.about = about

        def serialize(self) -> IHostMemory:
            return IHostMemory(_TIMING + json.dumps(self.about).encode())

    class IBuilderConfig:
        __slots__ = (
            *("builder_optimization_level", "max_aux_streams", "hardware_compatibility_level", "progress_monitor"),
            *("_cache", "_flags", "_logger", "_preview", "_profiles", "_workspace"),
        )

        def __init__(self, logger: Any) -> None:
            self._logger, self._flags, self._preview = logger, {"TF32"}, set()
            self._profiles: list[Any] = []
            self._cache: Any = None
            self.progress_monitor: Any = None
            self._workspace = 0

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self._workspace = pool_size

        def set_flag(self, flag: Any) -> None:
            self._flags.add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flag.name)

        def set_preview_feature(self, feature: Any, enable: bool) -> None:
            self._preview.add(feature.name)

        def add_optimization_profile(self, profile: Any) -> int:
            shapes = profile.shapes
            ordered = bool(shapes) and all(a <= b <= c for a, b, c in zip(*shapes, strict=True))
            if switches.profile_refused or not ordered:
                _say(fake, self._logger, "Error Code 4: IOptimizationProfile is not valid for tensor lr")
                return -1
            self._profiles.append(shapes)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            if not serialized_timing_cache:
                return ITimingCache({"version": fake.__version__, "gpu": fake.gpu, "known": []})
            if not bytes(serialized_timing_cache).startswith(_TIMING):
                _say(fake, self._logger, "Error Code 1: the timing cache is corrupt")
                return None
            return ITimingCache(json.loads(serialized_timing_cache[len(_TIMING) :]))

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            fits = (cache.about["version"], cache.about["gpu"]) == (fake.__version__, fake.gpu)
            if not (fits or ignore_mismatch):
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            seen.loggers.append(logger)

        def create_network(self, flags: int = 0) -> Any:
            typed = 1 << int(fake.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            return INetworkDefinition(not old or bool(flags & typed))

        def create_builder_config(self) -> Any:
            return IBuilderConfig(self.logger)

        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> IHostMemory | None:
            known = set(config._cache.about["known"])
            names = [layer.name for layer in network.layers]
            new = [name for name in names if name not in known]
            seen.timed += len(new)
            if not self._steps(config.progress_monitor, len(names)):
                return None
            if switches.build_error:
                _say(fake, self.logger, switches.build_error)
                return None
            config._cache.about["known"] = sorted(known | set(names))
            about = {
                "version": fake.__version__,
                "gpu": fake.gpu,
                "profiles": config._profiles,
                "level": config.builder_optimization_level,
                "aux_streams": config.max_aux_streams,
                "hardware": config.hardware_compatibility_level.name,
                "flags": sorted(config._flags),
                "preview": sorted(config._preview),
                "workspace": config._workspace,
            }
            seen.builds.append(about)
            body = json.dumps(about).encode() + b"\n" + network.graph
            return IHostMemory(_MAGIC + hashlib.sha256(body).hexdigest().encode() + body)

        def _steps(self, monitor: Any, count: int) -> bool:
            if monitor is None:
                return True
            outer, inner = "Building an engine", "Timing"
            _called(fake, monitor, "phase_start", outer, None, 1)
            _called(fake, monitor, "phase_start", inner, outer, count)
            for i in range(count):
                switches.on_step(i)
                time.sleep(switches.slow_step_s)
                if _called(fake, monitor, "step_complete", inner, i) is False:
                    _say(fake, self.logger, "Error Code 10: the build was cancelled by the progress monitor")
                    count = -1
                    break
            _called(fake, monitor, "phase_finish", inner)
            _called(fake, monitor, "phase_finish", outer)
            return count >= 0

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self.network = network
            self.errors: tuple[str, ...] = ()

        def parse(self, model: bytes, path: str | None = None) -> bool:
            self.errors = switches.parse_errors
            if not self.errors:
                try:
                    self.network.read(bytes(model))
                except Exception as error:
                    self.errors = (str(error),)
            return not self.errors

        @property
        def num_errors(self) -> int:
            return len(self.errors)

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(desc=lambda: self.errors[index])

    fake.Builder, fake.OnnxParser = Builder, OnnxParser


def _add_runtime(fake: Any) -> None:
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
                _say(fake, self.engine.logger, f"Error Code 3: {shape} does not satisfy any optimization profile")
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
                _say(fake, self.engine.logger, f"Error Code 3: no address can be set for {name}")
                return False
            self.addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            if switches.enqueue_fails or self.memory is None or len(self.addresses) < 2 or not self.shape:
                _say(fake, self.engine.logger, "Error Code 3: the context is not ready to run, or CUDA has failed")
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
            self.addresses = [context.addresses[name] for name in context.engine.names]
            self.out_shape = tuple(context.get_tensor_shape(context.engine.names[1]))

        def __call__(self) -> None:
            frames, out = (
                _at(address, shape, self.engine.dtype)
                for address, shape in zip(self.addresses, (self.shape, self.out_shape), strict=True)
            )
            seen.executed.append((self.stream, self.shape))
            (picture,) = _session(self.engine.graph).run(None, {self.engine.names[0]: frames.copy()})
            # Its working memory holds anything afterwards; before the result, which may not lie in it.
            _at(self.memory[0], (self.memory[1],), np.uint8)[:] = 0xFF
            out[...] = switches.damage(picture)

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
                _say(fake, self.logger, "Error Code 2: OutOfMemory (Requested size was 9663676416 bytes.)")
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
            start = len(_MAGIC)
            digest, body = serialized_engine[start : start + 64], serialized_engine[start + 64 :]
            if not serialized_engine.startswith(_MAGIC) or hashlib.sha256(body).hexdigest().encode() != digest:
                return _say(fake, self.logger, "Error Code 1: Serialization (magic tag does not match)")
            line, graph = body.split(b"\n", 1)
            about = json.loads(line)
            if about["version"] != fake.__version__:
                return _say(fake, self.logger, f"Error Code 6: expecting library version {about['version']}")
            if about["gpu"] != fake.gpu:
                return _say(fake, self.logger, f"Error Code 6: the engine was generated on {about['gpu']}")
            return ICudaEngine(about, graph, self.logger)

    fake.Runtime, fake.ICudaEngine, fake.IExecutionContext = Runtime, ICudaEngine, IExecutionContext


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype).reshape(shape)
