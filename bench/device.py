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


def peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """The most that one call holds beyond what was held before it; None where the system does not say."""
    if is_cuda(device):
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # Linux forgets the high-water mark of a process that writes 5 here.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = resident_bytes()
    run()
    return max(0, peak_resident_bytes() - before)
