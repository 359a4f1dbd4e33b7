"""What the hand-written kernels for sm_90a share on the host: where they run, whether to trust them, when to take them.

A kernel is one choice of template arguments. It is used on a GPU only after it has agreed there, in this process, with
the op's reference on a small shape; and for a shape only if it is not slower there than the Triton kernel beside it.
Anything else is the Triton kernel's, and `why_not` and `failures` say why.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from srgan_fast.kernels import architecture, driver, forced, nvrtc
from srgan_fast.kernels.cases import in_double
from srgan_fast.kernels.launch import pretended
from srgan_fast.kernels.nvrtc import Specialisation
from srgan_fast.kernels.parity import Report, compare, exact_float32

SM = 90
SHARED_LIMIT_BYTES = 232448
THREADS = 384  # two warpgroups that multiply and one that copies

_log = logging.getLogger(__name__)

# A tensor map as a field of a kernel's parameters.
Map = ctypes.c_uint8 * 128


def padded(*fields: tuple[str, Any]) -> list[tuple[str, Any]]:
    """The fields of a structure that has tensor maps in it, with what their alignment adds at its end."""

    class Bare(ctypes.Structure):
        _fields_ = fields

    return [*fields, ("_", ctypes.c_uint8 * (-ctypes.sizeof(Bare) % 128))]


ELEMENT = {torch.float16: "srgan_fast::Half", torch.bfloat16: "srgan_fast::BFloat16"}

# What a fast kernel must win by is nothing; the rounds are few, as a wrong choice costs little where two are close.
_ROUNDS, _CALLS = 5, 10
_AHEAD_CLOCKS = 10_000_000  # of the GPU, about 5 ms: more than the host takes to enqueue the calls of a round


class Runtime(Protocol):
    """A device that runs kernels for sm_90a."""

    device: torch.device
    processors: int

    def prepare(self, sources: Sequence[Specialisation]) -> None:
        """Compile what will be wanted, several at a time, with a word to the user if that takes time."""

    def kernel(self, source: Specialisation, shared_bytes: int) -> Any:
        """A kernel, compiled and loaded, that may use so much dynamic shared memory."""

    def tensor_map(
        self,
        address: int,
        dtype: torch.dtype,
        sizes: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        swizzle: int,
    ) -> bytes:
        """A tensor in global memory and the box of it that one copy moves; innermost dimension first.

        Units:  strides in bytes, of all dimensions but the first; swizzle 0, 32, 64 or 128 bytes
        """

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        threads: int,
        parameters: ctypes.Structure,
        *,
        what: str = "",
        overlap: bool = True,
    ) -> None:
        """Put a kernel into torch's current stream; with `overlap` it may start as the kernel before it ends."""

    def check(self, what: str) -> None:
        """Wait for the current stream.

        Raises:  an error that names `what` if something failed in it
        """


# Tests on a CPU put the emulator here.
_emulated: ContextVar[Runtime | None] = ContextVar("emulated", default=None)
# While set, kernels are noted instead of launched.
_noted: ContextVar[list[Specialisation] | None] = ContextVar("noted", default=None)


@contextmanager
def emulated(runtime: Runtime) -> Iterator[None]:
    """Let kernels for sm_90a run on CPU tensors, by a runtime that emulates them."""
    token = _emulated.set(runtime)
    try:
        yield
    finally:
        _emulated.reset(token)


def why_not(device: torch.device) -> tuple[str, str] | None:
    """Why kernels for sm_90a cannot run on a device and what would change that; None if they can."""
    if device.type == "cpu" and _emulated.get() is not None:
        return None
    if device.type != "cuda":
        return f"it needs a Hopper GPU, and the device is {device}", "choose --device cuda on a machine with one"
    if architecture(device) != SM:
        return f"it is for sm_{SM} alone, and this is sm_{architecture(device)}", "nothing: other kernels run here"
    return driver.why_not() or nvrtc.why_not()


def runtime_for(device: torch.device) -> Runtime | None:
    """The runtime of a device; None where there is a reason against it."""
    if why_not(device) is not None:
        return None
    if device.type == "cpu":
        return _emulated.get()
    return _gpu(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _gpu(index: int) -> Runtime:
    return driver.Gpu(torch.device("cuda", index))


@dataclass(frozen=True)
class Kernel:
    """One choice of template arguments of an op's kernel, and how to find out whether it is right.

    `check` runs it by a runtime on a small shape and compares it with the op's reference.
    """

    op: str
    source: Specialisation
    shared_bytes: int
    check: Callable[[Runtime], Report] = field(compare=False)


@dataclass(frozen=True)
class Offer:
    """A call that kernels for sm_90a could do: by which, on what in words, and the call itself."""

    runtime: Runtime
    kernels: tuple[Kernel, ...]
    what: str
    call: Callable[[Tensor], None]


@dataclass
class _Memory:
    """What is known of a runtime: kernels that failed or passed, calls that are slower than their rivals, and more."""

    trusted: dict[Specialisation, str | None] = field(default_factory=dict)
    slower: dict[str, bool] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    networks: list[str] = field(default_factory=list)
    calls: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


_memories: dict[int, tuple[Runtime, _Memory]] = {}


def _memory(runtime: Runtime) -> _Memory:
    # The runtime is kept beside its number, which would be given to another one otherwise.
    return _memories.setdefault(id(runtime), (runtime, _Memory()))[1]


def known(runtime: Runtime, fact: str, find_out: Callable[[], Any]) -> Any:
    """Something about a runtime, found out once."""
    memory = _memory(runtime)
    with memory.lock:
        if fact not in memory.facts:
            memory.facts[fact] = find_out()
        return memory.facts[fact]


def take(offer: Offer | str, rival: Callable[[Tensor], object], out: Tensor) -> bool:
    """Do an op's call by its kernels for sm_90a, if there is an offer, and it is right, and no slower than `rival`.

    Both write into the tensor they are given. Returns False if nothing was done.
    """
    if isinstance(offer, str) or forced() not in (None, "sm90"):
        return False
    if _noted.get() is not None:
        offer.call(out)
        return True
    memory = _memory(offer.runtime)
    if out.is_cuda and torch.cuda.is_current_stream_capturing() and not _settled(memory, offer):
        return False  # finding out takes launches that are no part of what is captured
    with memory.lock:
        if not all(_trusted(memory, offer.runtime, kernel) for kernel in offer.kernels):
            return False
        if forced() is None and offer.what not in memory.slower:
            memory.slower[offer.what] = _slower(offer, rival, out)
        if forced() is None and memory.slower[offer.what]:
            return False
        first = offer.what not in memory.seen
        memory.seen.add(offer.what)
        memory.calls += 1
    offer.call(out)
    if first:
        # Once for each shape, so that what fails has a name; later an error shows wherever the host waits next.
        offer.runtime.check(offer.what)
    return True


def _settled(memory: _Memory, offer: Offer) -> bool:
    known_kernels = all(kernel.source in memory.trusted for kernel in offer.kernels)
    return known_kernels and (forced() is not None or offer.what in memory.slower)


def launch(
    runtime: Runtime,
    kernel: Kernel,
    grid: tuple[int, int, int],
    parameters: ctypes.Structure,
    *,
    threads: int = THREADS,
) -> None:
    """Launch a kernel, or note that it will be wanted."""
    noted = _noted.get()
    if noted is not None:
        noted.append(kernel.source)
        return
    loaded = runtime.kernel(kernel.source, kernel.shared_bytes)
    runtime.launch(loaded, grid, threads, parameters, what=f"{kernel.op} by sm90, grid {grid}")


def prepare(device: torch.device, work: Callable[[], None]) -> None:
    """Compile the kernels that `work` would launch, without a launch of them; other kernels are launched."""
    runtime = runtime_for(device)
    if runtime is None:
        return
    wanted: list[Specialisation] = []
    token = _noted.set(wanted)
    try:
        work()
    finally:
        _noted.reset(token)
    runtime.prepare(list(dict.fromkeys(wanted)))


def processors(runtime: Runtime) -> int:
    """The multiprocessors to fill: the device's own, or those that `launch.pretend` names."""
    return pretended() or runtime.processors


def _trusted(memory: _Memory, runtime: Runtime, kernel: Kernel) -> bool:
    if kernel.source not in memory.trusted:
        memory.trusted[kernel.source] = said = _failure(runtime, kernel)
        if said:
            _log.warning("the Triton kernel runs in the place of %s for sm_90: %s", kernel.op, said)
    return memory.trusted[kernel.source] is None


def _failure(runtime: Runtime, kernel: Kernel) -> str | None:
    """What is wrong with a kernel on this device; None if it agrees with its reference."""
    try:
        with torch.inference_mode():
            report = kernel.check(runtime)
    except (nvrtc.CompileError, driver.DriverError) as error:
        return str(error)
    return None if report.passed else f"{kernel.source.expression} disagrees with the reference: {report}"


def checks(device: torch.device) -> dict[str, str | None]:
    """Each kernel that was asked for on a device in this process so far: what its check found wrong, or None."""
    runtime = runtime_for(device)
    trusted = {} if runtime is None else _memory(runtime).trusted
    return {f"{source.file}: {source.expression}": said for source, said in trusted.items()}


def failures(device: torch.device) -> list[str]:
    """What has failed its check on a device in this process so far: kernels, and networks of them."""
    runtime = runtime_for(device)
    networks = [] if runtime is None else _memory(runtime).networks
    return [said for said in checks(device).values() if said] + networks


def complain(device: torch.device, said: str) -> None:
    """Say, and remember among the failures, what is wrong with a whole network of these kernels on a device."""
    _log.warning("the Triton kernels run in the place of all for sm_90: %s", said)
    runtime = runtime_for(device)
    if runtime is not None:
        _memory(runtime).networks.append(said)


def calls(device: torch.device) -> int:
    """How many calls of ops were done by kernels for sm_90a on a device in this process so far."""
    runtime = runtime_for(device)
    return 0 if runtime is None else _memory(runtime).calls


def choices(device: torch.device) -> dict[str, str]:
    """Which implementation was chosen for each op and shape that has run on a device in this process."""
    runtime = runtime_for(device)
    slower = {} if runtime is None else _memory(runtime).slower
    return {what: "triton" if lost else "sm90" for what, lost in slower.items()}


def _slower(offer: Offer, rival: Callable[[Tensor], object], out: Tensor) -> bool:
    """Whether the rival is faster, by the clock of the GPU; neither writes into `out`, which may be an input too."""
    if out.device.type != "cuda":
        return False
    scratch = torch.empty_like(out)
    runs: tuple[Callable[[Tensor], object], ...] = (offer.call, rival)
    times: tuple[list[float], list[float]] = ([], [])
    with torch.cuda.device(out.device):
        for number in range(_ROUNDS + 1):
            for run, taken in zip(runs, times, strict=True):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                # The GPU starts when all is enqueued, as in a graph: else the time of small calls is that of the host.
                torch.cuda._sleep(_AHEAD_CLOCKS)  # type: ignore[no-untyped-call]
                start.record()
                for _ in range(_CALLS):
                    run(scratch)
                end.record()
                end.synchronize()
                if number:  # the first round compiles and loads
                    taken.append(start.elapsed_time(end))
    mine, theirs = (sorted(taken)[_ROUNDS // 2] for taken in times)
    _log.info("%s: %.1f us, by triton %.1f us", offer.what, 1e3 * mine / _CALLS, 1e3 * theirs / _CALLS)
    return mine > theirs


class TileOrder(ctypes.Structure):
    """TileOrder of include/tiles.cuh."""

    _fields_ = (
        ("across", ctypes.c_int),
        ("a_frame", ctypes.c_int),
        ("tiles", ctypes.c_int),
        ("reversed", ctypes.c_int),
    )


def tile_order(frames: int, height: int, width: int, rows: int, columns: int, backwards: bool) -> TileOrder:
    """The order of tiles of rows x columns; `backwards` starts with the last."""
    across = -(-width // columns)
    a_frame = across * -(-height // rows)
    return TileOrder(across, a_frame, a_frame * frames, backwards)


def dense_map(runtime: Runtime, pixels: Tensor, sizes: Sequence[int], box: Sequence[int], swizzle: int) -> Any:
    """The map of a tensor whose dimensions lie one after another, `sizes` from the innermost out."""
    strides = [pixels.element_size() * math.prod(sizes[: rank + 1]) for rank in range(len(sizes) - 1)]
    return Map(*runtime.tensor_map(pixels.data_ptr(), pixels.dtype, sizes, strides, box, swizzle))


def compare_by(
    reference: Callable[..., Tensor], arguments: dict[str, Any], fast: Tensor, dtype: torch.dtype | None = None
) -> Report:
    """Hold a kernel's result against the op's reference by the tolerance rule, of the result's dtype or another."""
    with exact_float32(fast.device):
        return compare(fast, reference(**arguments), reference(**in_double(arguments)), dtype or fast.dtype)


# --- weights in the kernels' order, kept for as long as the tensor that they were made of lives ------------------

_packed: Any = WeakIdKeyDictionary()
_packing = threading.Lock()


def packed(weight: Tensor, pack: Callable[[Tensor], Tensor]) -> Tensor:
    """`pack(weight)`, made once for each tensor and `pack`, and anew after the tensor was written to."""
    version = None if weight.is_inference() else weight._version
    with _packing:
        known = _packed.setdefault(weight, {})
        if version is None or known.get(pack, (None, None))[0] != version:
            known[pack] = version, pack(weight).contiguous()
            if weight.is_cuda and not torch.cuda.is_current_stream_capturing():
                # Kernels read their weights before they wait for the kernel that ran before them.
                torch.cuda.current_stream(weight.device).synchronize()
        result: Tensor = known[pack][1]
    return result


# --- tiles ------------------------------------------------------------------------------------------------------


# What the tensor cores stand still from one tile to the next, as the turn goes to the other warpgroup: an estimate.
_TURN_CLOCKS = 100


def clocks(rows: int, columns: int) -> int:
    """What one k-step of a tile takes: products at 2048 a clock, or the operands' way from shared memory at 128 bytes.

    Source:  m64nNk16 has 64 * N * 16 products, and reads 2048 bytes of weights and 32 * N of pixels
    """
    n = rows * columns
    return max(n // 2, 16 + n // 4)


def waves(tiles: int, blocks: int) -> int:
    """How many tiles the busiest block has."""
    return -(-tiles // max(1, min(tiles, blocks)))


def tile_rows(
    frames: int,
    height: int,
    width: int,
    columns: int,
    computed: int,
    blocks: int,
    heights: Sequence[int],
    steps: int,
) -> int:
    """The height of tiles that ends first: fewest clocks in the block that ends last, so that no wave is half empty.

    `columns` of a tile are written, `computed` are multiplied, in `steps` k-steps; `blocks` run at a time. Of equals,
    the tallest tile has the least halo.
    """

    def cost(rows: int) -> tuple[int, int]:
        tiles = frames * -(-height // rows) * -(-width // columns)
        # The last tile's epilogue is not hidden: it grows with the pixels of a tile, by about one step's clocks a row.
        return waves(tiles, blocks) * (steps * clocks(rows, computed) + _TURN_CLOCKS) + 8 * rows, -rows

    return min(heights, key=cost)
