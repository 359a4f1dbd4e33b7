"""A double of NVIDIA's `tensorrt`, of either generation, whose engines compute with onnxruntime on the CPU.

It has the names that we use and the habits that bite: removed flags are missing, the number of STRONGLY_TYPED differs,
plans and timing caches of another version or GPU are refused, failures are None or False and a line in the log, and a
context knows nothing but addresses. What our code does wrong with it ends in `misuses`, or in wrong pixels.
"""

from __future__ import annotations

import enum
import hashlib
import importlib.machinery
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fake_runtime import MAGIC, add_runtime, called, say

from srgan_fast.tensorrt import library

VERSIONS = ("10.13.3.9", "11.4.0.106")
GPU = SimpleNamespace(
    name="Fake GPU", major=9, minor=0, multi_processor_count=4, total_memory=1 << 30, L2_cache_size=1 << 20
)
_TIMING = b"fake timing\n"


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
    executed: list[tuple[int, tuple[int, ...], int]] = field(default_factory=list)  # stream, shape, profile
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
    add_runtime(fake)
    return fake


def _add_enums(fake: Any, old: bool) -> None:
    creation = ("EXPLICIT_BATCH", "STRONGLY_TYPED") if old else ("STRONGLY_TYPED",)
    fake.NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", *creation)
    removed = {"FP16": 0, "INT8": 1, "BF16": 17, "OBEY_PRECISION_CONSTRAINTS": 9} if old else {}
    fake.BuilderFlag = _enum("BuilderFlag", TF32=6, **removed)
    fake.DataType = _enum("DataType", "FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8")
    fake.TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")
    fake.MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE")
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
            *("builder_optimization_level", "max_aux_streams", "progress_monitor"),
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

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flag.name)

        def set_preview_feature(self, feature: Any, enable: bool) -> None:
            self._preview.add(feature.name)

        def add_optimization_profile(self, profile: Any) -> int:
            shapes = profile.shapes
            ordered = bool(shapes) and all(a <= b <= c for a, b, c in zip(*shapes, strict=True))
            if switches.profile_refused or not ordered:
                say(fake, self._logger, "Error Code 4: IOptimizationProfile is not valid for tensor lr")
                return -1
            self._profiles.append(shapes)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            if not serialized_timing_cache:
                return ITimingCache({"version": fake.__version__, "gpu": fake.gpu, "known": []})
            if not bytes(serialized_timing_cache).startswith(_TIMING):
                say(fake, self._logger, "Error Code 1: the timing cache is corrupt")
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
                say(fake, self.logger, switches.build_error)
                return None
            config._cache.about["known"] = sorted(known | set(names))
            about = {
                "version": fake.__version__,
                "gpu": fake.gpu,
                "profiles": config._profiles,
                "level": config.builder_optimization_level,
                "aux_streams": config.max_aux_streams,
                "flags": sorted(config._flags),
                "preview": sorted(config._preview),
                "workspace": config._workspace,
            }
            seen.builds.append(about)
            body = json.dumps(about).encode() + b"\n" + network.graph
            return IHostMemory(MAGIC + hashlib.sha256(body).hexdigest().encode() + body)

        def _steps(self, monitor: Any, count: int) -> bool:
            if monitor is None:
                return True
            outer, inner = "Building an engine", "Timing"
            called(fake, monitor, "phase_start", outer, None, 1)
            called(fake, monitor, "phase_start", inner, outer, count)
            for i in range(count):
                switches.on_step(i)
                time.sleep(switches.slow_step_s)
                if called(fake, monitor, "step_complete", inner, i) is False:
                    say(fake, self.logger, "Error Code 10: the build was cancelled by the progress monitor")
                    count = -1
                    break
            called(fake, monitor, "phase_finish", inner)
            called(fake, monitor, "phase_finish", outer)
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

    for each in (
        Builder,
        IBuilderConfig,
        IHostMemory,
        INetworkDefinition,
        IOptimizationProfile,
        ITimingCache,
        OnnxParser,
    ):
        setattr(fake, each.__name__, each)
