"""The CUDA driver by ctypes: what compiled kernels need to run in torch's context and on torch's streams."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from srgan_fast.errors import SRGANFastError
from srgan_fast.kernels import cubins
from srgan_fast.kernels.nvrtc import CompileError, Specialisation

_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # of CUfunction_attribute
_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # of CUlaunchAttributeID
_ELEMENTS = {  # of CUtensorMapDataType; bytes have no sign there
    torch.uint8: 0,
    torch.int8: 0,
    torch.uint16: 1,
    torch.int32: 3,
    torch.float16: 6,
    torch.float32: 7,
    torch.bfloat16: 9,
}
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # of CUtensorMapSwizzle
_L2_PROMOTION_128B = 2  # of CUtensorMapL2promotion: a pixel's 64 channels
_MAP_BYTES = 128
# A tensor map has to lie at such an address; the headers of CUDA 12 ask for half of it.
_ALIGNMENT = 128
# After these nothing works in this process any more, and the call that is told of it is not the one that did it.
_STICKY = (700, 702, 710, 714, 715, 716, 717, 718, 719)
_OLDEST = 12030  # tensor maps are older; launches that overlap are captured into graphs since then

_int, _size, _pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuDriverGetVersion": (_pointer,),
    "cuGetErrorName": (_int, _pointer),
    "cuGetErrorString": (_int, _pointer),
    "cuDeviceGet": (_pointer, _int),
    "cuDevicePrimaryCtxRetain": (_pointer, _int),
    "cuCtxPushCurrent_v2": (_pointer,),
    "cuCtxPopCurrent_v2": (_pointer,),
    "cuModuleLoadData": (_pointer, _pointer),
    "cuModuleGetFunction": (_pointer, _pointer, ctypes.c_char_p),
    "cuFuncSetAttribute": (_pointer, _int, _int),
    "cuTensorMapEncodeTiled": (_pointer, _int, ctypes.c_uint32, *[_pointer] * 5, *[_int] * 4),
    "cuLaunchKernelEx": (_pointer,) * 4,
    "cuStreamIsCapturing": (_pointer, _pointer),
    "cuStreamSynchronize": (_pointer,),
}


class DriverError(SRGANFastError):
    """The CUDA driver refuses a call, or a kernel has failed; says which and in what."""


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute, of whose values only the plain number is used."""

    _fields_ = (
        ("id", ctypes.c_uint),
        ("pad", ctypes.c_char * 4),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("gridDimX", ctypes.c_uint),
        ("gridDimY", ctypes.c_uint),
        ("gridDimZ", ctypes.c_uint),
        ("blockDimX", ctypes.c_uint),
        ("blockDimY", ctypes.c_uint),
        ("blockDimZ", ctypes.c_uint),
        ("sharedMemBytes", ctypes.c_uint),
        ("hStream", ctypes.c_void_p),
        ("attrs", ctypes.POINTER(LaunchAttribute)),
        ("numAttrs", ctypes.c_uint),
    )


@dataclass(frozen=True)
class Loaded:
    """A kernel in a device's context."""

    function: int
    shared_bytes: int


def why_not() -> tuple[str, str] | None:
    """Why the driver cannot be used and what would change that; None if it can."""
    library = _library()
    if isinstance(library, str):
        return library, "install NVIDIA's driver, 545 or later"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device", "use a CUDA build of torch on a machine with an NVIDIA GPU"
    return None


@cache
def _library() -> Any:
    """The driver, or why there is none that will do."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no CUDA driver: libcuda.so.1 does not load"
    try:
        for name, types in _FUNCTIONS.items():
            getattr(driver, name).argtypes = types
    except AttributeError as error:
        return f"the CUDA driver is too old: {error}"
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    if version.value < _OLDEST:
        return f"the CUDA driver is too old: it is for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return driver


def _call(name: str, *arguments: Any, what: str) -> None:
    driver = _library()
    if isinstance(driver, str):
        raise DriverError(f"{what}: {driver}")
    status = getattr(driver, name)(*arguments)
    if status == 0:
        return
    words = []
    for ask in (driver.cuGetErrorName, driver.cuGetErrorString):
        said = ctypes.c_char_p()
        words.append((said.value or b"").decode() if ask(status, ctypes.byref(said)) == 0 else f"error {status}")
    earlier = name == "cuLaunchKernelEx" and status in _STICKY
    blame = "a kernel that was launched before failed" if earlier else f"{name} failed"
    raise DriverError(f"{what}: {blame} with {words[0]}, {words[1]}")


class Gpu:
    """A CUDA device of torch as a runtime for kernels: see `hopper.Runtime`. Any thread may use it.

    Raises:  DriverError, here and in every method, for what the driver refuses; a kernel that fails while it runs is
             told of by `check`, or by whatever call comes next
    """

    def __init__(self, device: torch.device) -> None:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self.processors: int = torch.cuda.get_device_properties(self.device).multi_processor_count
        handle, context = ctypes.c_int(), ctypes.c_void_p()
        _call("cuDeviceGet", ctypes.byref(handle), index, what=f"device {self.device}")
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle, what=f"context of {self.device}")
        self._context = context
        self._loaded: dict[tuple[Specialisation, int], Loaded] = {}
        self._loading = threading.RLock()

    def prepare(self, sources: Sequence[Specialisation]) -> None:
        """Compile kernels, several at a time, or find them in the cache."""
        try:
            cubins.get(sources)
        except CompileError:
            return  # `kernel` tells of it when that one is asked for

    def kernel(self, source: Specialisation, shared_bytes: int) -> Loaded:
        """A kernel, compiled and loaded once, that may use so much dynamic shared memory.

        Raises:  nvrtc.CompileError; DriverError
        """
        with self._loading:
            if (source, shared_bytes) not in self._loaded:
                self._loaded[source, shared_bytes] = self._load(source, shared_bytes)
            return self._loaded[source, shared_bytes]

    def _load(self, source: Specialisation, shared_bytes: int) -> Loaded:
        (cubin,) = cubins.get([source])
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        what = f"loading {source.expression}"
        with self._current(what):
            _call("cuModuleLoadData", ctypes.byref(module), cubin.image, what=what)
            _call("cuModuleGetFunction", ctypes.byref(function), module, cubin.symbol.encode(), what=what)
            what += f" with {shared_bytes} bytes of shared memory"
            _call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes, what=what)
        return Loaded(function.value or 0, shared_bytes)

    def tensor_map(
        self,
        address: int,
        dtype: torch.dtype,
        sizes: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        swizzle: int,
    ) -> bytes:
        """A tensor in global memory and the box of it that one copy moves; what lies outside reads as zero.

        Shapes:  sizes and box one value a dimension, innermost first; strides one less
        Units:   strides in bytes, of all dimensions but the first; swizzle 0, 32, 64 or 128 bytes
        """
        rank = len(sizes)
        memory = aligned(_MAP_BYTES)
        _call(
            "cuTensorMapEncodeTiled",
            memory,
            _ELEMENTS[dtype],
            rank,
            address,
            (ctypes.c_uint64 * rank)(*sizes),
            (ctypes.c_uint64 * (rank - 1))(*strides),
            (ctypes.c_uint32 * rank)(*box),
            (ctypes.c_uint32 * rank)(*[1] * rank),
            0,  # no interleave
            _SWIZZLES[swizzle],
            _L2_PROMOTION_128B,
            0,  # zeros outside
            what=f"a map of {dtype} {tuple(sizes)} at {address:#x}, strides {tuple(strides)}, box {tuple(box)}, "
            f"swizzle {swizzle}",
        )
        return bytes(memory)

    def launch(
        self,
        kernel: Loaded,
        grid: tuple[int, int, int],
        threads: int,
        parameters: ctypes.Structure,
        *,
        what: str = "",
        overlap: bool = True,
    ) -> None:
        """Put a kernel into torch's current stream; with `overlap` it may start as the kernel before it ends.

        Raises:  DriverError that names `what`, and says so if the fault is that of a kernel launched before
        """
        # The driver copies the parameters before it returns, and takes them as the kernel will see them: aligned.
        memory = aligned(ctypes.sizeof(parameters))
        ctypes.memmove(memory, ctypes.byref(parameters), ctypes.sizeof(parameters))
        early = LaunchAttribute(id=_PROGRAMMATIC_STREAM_SERIALIZATION, value=1)
        stream = torch.cuda.current_stream(self.device).cuda_stream
        config = LaunchConfig(*grid, threads, 1, 1, kernel.shared_bytes, stream, ctypes.pointer(early), int(overlap))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(memory))
        what = f"{what or 'a kernel'} (grid {grid}, {threads} threads, {kernel.shared_bytes} bytes of shared memory)"
        with self._current(what):
            _call("cuLaunchKernelEx", ctypes.byref(config), kernel.function, pointers, None, what=what)

    def check(self, what: str) -> None:
        """Wait for the current stream; while it is being captured, where waiting is not allowed, do nothing.

        Raises:  DriverError that names `what` if something in it failed
        """
        stream, capturing = torch.cuda.current_stream(self.device).cuda_stream, ctypes.c_int()
        with self._current(what):
            _call("cuStreamIsCapturing", stream, ctypes.byref(capturing), what=what)
            if not capturing.value:
                _call("cuStreamSynchronize", stream, what=what)

    @contextmanager
    def _current(self, what: str) -> Iterator[None]:
        """Make torch's context this thread's own: torch does so only when the thread first needs it."""
        _call("cuCtxPushCurrent_v2", self._context, what=what)
        try:
            yield
        finally:
            # Whatever it says, the call inside has said before.
            _library().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def aligned(size: int) -> ctypes.Array[ctypes.c_uint8]:
    """Memory for a kernel's parameters."""
    memory = (ctypes.c_uint8 * (size + _ALIGNMENT))()
    start = ctypes.addressof(memory)
    offset = -start % _ALIGNMENT
    # The part keeps the whole alive.
    return (ctypes.c_uint8 * size).from_buffer(memory, offset)
