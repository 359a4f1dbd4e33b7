"""An engine, loaded and run over torch's memory: one CUDA graph and one execution context for each size of frames.

All contexts of an engine share one block of memory and one stream, so they run one after another and cost together
what the largest costs alone. Frames are copied into that memory and results out of it, in stream order, without a wait
on the host: what a caller holds is never a view of it, and TensorRT sees nothing but addresses in it.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from srgan_fast import graph
from srgan_fast.errors import BackendUnavailable, ShapeError
from srgan_fast.tensorrt.build import Frames, Profile
from srgan_fast.tensorrt.library import checked, load, logger, mark, on, said, tensor_shape

if TYPE_CHECKING:
    import tensorrt as trt

# As many as tiles of one frame have sizes; see the backend fused.
_MOST_GRAPHS = 16
_ALIGNMENT = 256  # of the memory that a context works in, and good for any copy


@dataclass(frozen=True)
class _Ready:
    """One size of frames, ready to run; it keeps what its graph has only the addresses of."""

    replay: graph.Work
    frames: Tensor
    out: Tensor
    context: trt.IExecutionContext


class Engine:
    """A plan on one GPU.

    Shapes:  frames [n, h, w, 3] within `range`; results `scale` times larger
    Dtypes:  `dtype`, uint8 or float32, in and out
    Units:   floats in [0, 1]
    Raises:  BackendUnavailable for a plan of another GPU or version, a damaged one, or one that is not of our graphs
    """

    def __init__(self, plan: bytes, device: torch.device | str) -> None:
        load()
        import tensorrt as trt

        self.device = torch.device(device)
        since = mark()
        with on(self.device):
            # It has to outlive the engine.
            self._runtime = trt.Runtime(logger())
            self._runtime.engine_host_code_allowed = False  # the default, said aloud: a plan is native code already
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendUnavailable(
                f"TensorRT {trt.__version__} cannot load this engine: {said(since)}; build it again with srgan-fast trt"
                " build"
            )
        self._engine = engine
        self._input, self._output, kind = _signature(engine)
        self._kind = kind
        self.dtype = torch.uint8 if kind == trt.DataType.UINT8 else torch.float32
        self._profiles = tuple(self._profile(i) for i in range(engine.num_optimization_profiles))
        self._stream = graph.stream_for(self.device)
        self._memory = torch.empty(0, dtype=torch.uint8, device=self.device)
        self._ready: OrderedDict[Frames, _Ready] = OrderedDict()
        self._enqueue = threading.Lock()

    def __del__(self) -> None:
        # Whoever drops an engine may not have waited for its last result, and a context must not go before its work.
        with suppress(Exception):
            self._settle()

    @property
    def range(self) -> tuple[Frames, Frames]:
        """The smallest and the largest frames that it takes, as n, h, w: those of its first profile."""
        return self._profiles[0].min, self._profiles[0].max

    @property
    def reusable_bytes(self) -> int:
        """The memory that it holds, and that the next frames will use again."""
        return self._memory.numel()

    def size_bytes(self, frames: Frames) -> int:
        """The memory that frames of n, h, w take, their copies in it and all.

        Raises:  ShapeError for frames that it does not take
        """
        with self._enqueue, self._inside():
            return self._planned(frames).size_bytes

    def run(self, frames: Tensor, out: Tensor) -> None:
        """Upscale contiguous frames [n, h, w, 3] into `out` [n, h*scale, w*scale, 3], which may have any strides.

        Raises:  ShapeError for frames that it does not take; BackendUnavailable where TensorRT fails
        """
        if not frames.dtype == out.dtype == self.dtype:
            raise ShapeError(
                f"expected frames and out in {self.dtype}, got {frames.dtype} and {out.dtype}; convert them"
            )
        # A context takes one caller at a time. The lock covers launches alone, but for a size that comes up first.
        with self._enqueue, torch.inference_mode(), self._inside(frames, out):
            n, h, w, _ = frames.shape
            ready = self._prepared((n, h, w))
            ready.frames.copy_(frames)
            ready.replay()
            out.copy_(ready.out)

    def _inside(self, *tensors: Tensor) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else graph.Ordered(self._stream, tensors)

    def _settle(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _handle(self) -> int:
        return 0 if self._stream is None else self._stream.cuda_stream

    def _prepared(self, frames: Frames) -> _Ready:
        if frames in self._ready:
            self._ready.move_to_end(frames)
            return self._ready[frames]
        plan = self._planned(frames)
        if plan.size_bytes > self._memory.numel():
            # Graphs have addresses of the old memory, contexts too.
            self._settle()
            self._ready.clear()
            self._memory = torch.empty(0, dtype=torch.uint8, device=self.device)
            self._memory = torch.empty(plan.size_bytes, dtype=torch.uint8, device=self.device)
        ready = self._bound(plan)
        self._ready[frames] = ready
        if len(self._ready) > _MOST_GRAPHS:
            self._settle()
            self._ready.popitem(last=False)
        return ready

    def _planned(self, frames: Frames) -> _Planned:
        """A context for frames of this size, which has not been given memory yet."""
        import tensorrt as trt

        candidates = [i for i, profile in enumerate(self._profiles) if profile.takes(frames)]
        if not candidates:
            (_, h, w), (n_most, h_most, w_most) = self.range
            raise ShapeError(
                f"expected 1 to {n_most} frames from {w}x{h} to {w_most}x{h_most}, got {frames[0]} of"
                f" {frames[2]}x{frames[1]}; take smaller tiles, or build an engine for larger frames with srgan-fast"
                " trt build"
            )
        narrowest = min(candidates, key=lambda i: math.prod(self._profiles[i].max))
        since = mark()
        try:
            # Memory of its own would be that of the largest frames that the engine takes, once for each context.
            strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
            context = checked(context, "TensorRT makes no execution context", since)
            switched = context.set_optimization_profile_async(narrowest, self._handle())
            checked(switched, f"TensorRT does not take profile {narrowest}", since)
            shape = tensor_shape(frames, 3, self._kind)
            checked(context.set_input_shape(self._input, shape), f"TensorRT does not take frames of {shape}", since)
            missing = context.infer_shapes()
            checked(not missing, f"TensorRT knows no shape of {', '.join(missing)}", since)
            working = context.update_device_memory_size_for_shapes()
        except RuntimeError as error:
            raise BackendUnavailable(
                f"TensorRT fails with frames of {frames}: {_line(error)}; {said(since)}"
            ) from error
        return _Planned(context, working, shape, context.get_tensor_shape(self._output)[:], self.dtype)

    def _bound(self, plan: _Planned) -> _Ready:
        """Give a context its memory and its addresses, and capture its work."""
        since, context = mark(), plan.context
        start = -self._memory.data_ptr() % _ALIGNMENT
        parts = []
        for size in plan.sizes:
            parts.append(self._memory[start : start + size])
            start += _aligned(size)
        working, lr, hr = parts
        lr, hr = lr.view(self.dtype).view(plan.lr), hr.view(self.dtype).view(plan.hr)
        context.set_device_memory(working.data_ptr(), working.numel())
        for name, tensor in ((self._input, lr), (self._output, hr)):
            checked(context.set_tensor_address(name, tensor.data_ptr()), f"TensorRT takes no address for {name}", since)

        handle = self._handle()

        def work() -> None:
            # Nothing here holds the engine, which would then hold itself, and its memory with it.
            checked(context.execute_async_v3(handle), "TensorRT fails to run", since)

        try:
            replay = graph.capture(work, self.device, self._stream)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise BackendUnavailable(f"TensorRT's work cannot be captured: {_line(error)}; {said(since)}") from error
        if self.dtype != torch.uint8:
            lr, hr = lr.permute(0, 2, 3, 1), hr.permute(0, 2, 3, 1)
        return _Ready(replay, lr, hr, context)

    def _profile(self, index: int) -> Profile:
        shapes = [shape[:] for shape in self._engine.get_tensor_profile_shape(self._input, index)]
        rows = 1 if self.dtype == torch.uint8 else 2
        low, tuned, high = ((shape[0], shape[rows], shape[rows + 1]) for shape in shapes)
        return Profile(low, tuned, high)


@dataclass(frozen=True)
class _Planned:
    """A context for one size of frames, and what it needs: `working` bytes beside the frames and the result."""

    context: trt.IExecutionContext
    working: int
    lr: tuple[int, ...]
    hr: tuple[int, ...]
    dtype: torch.dtype

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes: what TensorRT works in, the frames, the result."""
        return self.working, math.prod(self.lr) * self.dtype.itemsize, math.prod(self.hr) * self.dtype.itemsize

    @property
    def size_bytes(self) -> int:
        """All of it, each on its boundary, wherever the memory begins."""
        return _ALIGNMENT + sum(_aligned(size) for size in self.sizes)


def _line(error: RuntimeError) -> str:
    """The first line of what torch and CUDA have to say, where the rest is advice for their own developers."""
    return str(error).partition("\n")[0]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _signature(engine: trt.ICudaEngine) -> tuple[str, str, trt.DataType]:
    """The names of an engine's frames and of its result, and the type of both.

    Raises:  BackendUnavailable for an engine that is not of a graph of ours
    """
    import tensorrt as trt

    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {(engine.get_tensor_mode(name), engine.get_tensor_dtype(name)): name for name in names}
    for kind in (trt.DataType.UINT8, trt.DataType.FLOAT):
        wanted = (trt.TensorIOMode.INPUT, kind), (trt.TensorIOMode.OUTPUT, kind)
        if len(names) == 2 and all(each in found for each in wanted):
            return found[wanted[0]], found[wanted[1]], kind
    got = ", ".join(f"{engine.get_tensor_dtype(name)} {name}" for name in names)
    raise BackendUnavailable(
        f"expected an engine that takes and gives frames, uint8 or float32, got one of {got}; build it again with"
        " srgan-fast trt build"
    )
