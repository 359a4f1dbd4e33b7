"""What this process holds, what tensors take, and how a memory budget is kept."""

from __future__ import annotations

import ctypes
import re
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srgan_fast.errors import UsageError

_M_MMAP_THRESHOLD = -3  # from malloc.h
_LARGE_BYTES = 1 << 20


def parse_memory(memory: str | int | None) -> int | None:
    """A memory budget in bytes from '2G', '512M', '800MiB' or a number of bytes; letters are powers of 1024.

    Raises:  UsageError for anything else
    """
    if memory is None or isinstance(memory, int):
        return memory
    pattern = r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*"
    match = re.fullmatch(pattern, memory, re.IGNORECASE) if isinstance(memory, str) else None
    if not match:
        raise UsageError(f"expected a memory budget such as 2G or 512M, got {memory!r}")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def resident_bytes() -> int:
    """The memory that this process holds now; 0 where the system does not say."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most memory that this process has held; 0 where the system does not say."""
    return _status("VmHWM")


def _status(field: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def give_back_freed() -> None:
    """Have the C library return every freed tensor of 1 MiB and more to the system at once, from now on.

    Without this glibc keeps up to 64 MiB and what lies between pieces in use, which no plan can foresee. It holds for
    the whole process, and is asked for only where a budget is. Other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the memory of the tensors that are made inside it: `now`, and `peak` since the last `reset`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would load torch._dynamo, a second and 70 MB, to keep a compiler out that is not here

    def reset(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.add.Tensor and isinstance(args[1], Tensor):
            # Of numbers of two kinds the CPU first makes copies of one kind, which no dispatch sees.
            mixed = (each for each in args[:2] if each.dtype != result.dtype and each.device.type == "cpu")
            hidden = sum(each.numel() for each in mixed) * result.element_size()
            self.peak = max(self.peak, self.now + result.nbytes + hidden)
        given = {id(each.untyped_storage()) for each in args if isinstance(each, Tensor)}
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if not isinstance(each, Tensor):
                continue
            storage = each.untyped_storage()
            if id(storage) in given or storage in self._known:
                continue
            self._known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, size: int) -> None:
        self.now -= size
