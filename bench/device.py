"""What a device needs so that a measurement on it means something: exact float32, an end to wait for, its peak."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from srgan_fast.memory import peak_resident_bytes, resident_bytes


def is_cuda(device: str) -> bool:
    """Whether a device by this name is a GPU."""
    return torch.device(device).type == "cuda"


def synchronise(device: str) -> None:
    """Return when the device has done all that it was given, on every stream."""
    if is_cuda(device):
        torch.cuda.synchronize(device)


@contextmanager
def float32(device: str, *, tf32: bool = False) -> Iterator[None]:
    """float32 means float32 (or TF32 where that is what is measured), and the library may try its convolutions.

    cuDNN's own search belongs to a fair baseline: without it a user's first line of tuning would be missing.
    """
    if not is_cuda(device):
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    saved = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = saved


def rest_bytes(device: str) -> int:
    """What this process holds on the device while nothing runs, freed memory given back first."""
    if not is_cuda(device):
        return resident_bytes()
    synchronise(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def peak_bytes(run: Callable[[], object], device: str, since: int) -> int | None:
    """The most that is held while `run` is called, beyond what `rest_bytes` was before it was made ready.

    On a GPU what is reserved, not what is allocated: the pool of a captured graph is the graph's as long as it lives,
    whether a tensor lies in it at the moment or not. None where the system does not say.
    """
    if is_cuda(device):
        rest_bytes(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        synchronise(device)
        return torch.cuda.max_memory_reserved(device) - since
    try:
        # Linux forgets the high-water mark of a process that writes 5 here.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    run()
    return max(0, peak_resident_bytes() - since)
