"""The part of `srgan-fast upscale` for several GPUs, processes or machines: its options, and who does the work."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from srgan_fast.errors import BackendUnavailable, UsageError

if TYPE_CHECKING:
    from srgan_fast.upscaler import Upscaler
    from srgan_fast.video.workers import Crew

_PANEL = "Video on several GPUs or machines"
Gpus = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBERS",
        help="Run a process for each of these GPUs, such as 0,1.",
        show_default="one process",
        rich_help_panel=_PANEL,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Run so many processes, which share the cores of the CPU; with --cluster so many actors.",
        show_default="one; with --cluster one for each GPU, or each machine",
        rich_help_panel=_PANEL,
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Run actors of a Ray cluster: ray; of the one that is there, or else of this machine.",
        show_default="none",
        rich_help_panel=_PANEL,
    ),
]


class Wish(NamedTuple):
    """Who should do the work, as a user has said it."""

    gpus: str | None = None
    workers: int | None = None
    cluster: str | None = None

    def check(self, device: str) -> None:
        """Refuse what contradicts itself.

        Raises:  UsageError
        """
        self._numbers()
        if self.cluster not in (None, "ray"):
            raise UsageError(f"expected --cluster ray, got {self.cluster}")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"expected --workers of 1 or more, got {self.workers}")
        if self.gpus is not None and self.cluster is not None:
            raise UsageError("Ray gives each actor a GPU of its own; leave --gpus out, or say --workers")
        if self.gpus is not None and self.workers is not None:
            raise UsageError("--gpus has one process for each GPU; leave --workers out")
        if self.gpus is not None and device not in ("auto", "cuda"):
            raise UsageError(f"expected --gpus or --device, got both ({self.gpus}, {device}); leave one out")
        if self.cluster is not None and device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"expected --device auto, cpu or cuda with --cluster, got {device}; Ray chooses the GPU")

    def crew(self, make: Callable[[str], Callable[[], Upscaler]], device: str) -> AbstractContextManager[Crew] | None:
        """The workers; None where this process does it. `make` gives what builds an upscaler on a device.

        Raises:  UsageError; BackendUnavailable where a GPU, or Ray, is not there
        """
        if self.cluster is not None:
            from srgan_fast.video.cluster import Actors

            return Actors(make(device), self.workers, gpus={"auto": None, "cpu": False, "cuda": True}[device])
        if self.gpus is not None:
            import torch

            from srgan_fast.video.workers import Place, Processes

            there, numbers = torch.cuda.device_count(), self._numbers()
            if max(numbers) >= there:
                seen = f"{there} GPUs, the first is 0" if there else "no NVIDIA GPU"
                raise BackendUnavailable(f"--gpus {self.gpus} was asked for, but torch sees {seen}")
            return Processes(make("cuda"), [Place(gpu=number) for number in numbers])
        if self.workers is not None:
            from srgan_fast.upscaler import resolved
            from srgan_fast.video.workers import Place, Processes

            if resolved(device) != "cpu":
                raise UsageError("--workers shares the cores of a CPU; for GPUs give --gpus, else --device cpu")
            cores = len(os.sched_getaffinity(0))
            if self.workers > cores:
                raise UsageError(f"expected --workers up to the {cores} cores of this machine, got {self.workers}")
            return Processes(make("cpu"), [Place(threads=cores // self.workers)] * self.workers)
        return None

    def _numbers(self) -> list[int]:
        if self.gpus is None:
            return []
        parts = self.gpus.split(",")
        if not all(part.strip().isdecimal() for part in parts) or len({int(part) for part in parts}) < len(parts):
            raise UsageError(f"expected --gpus as different numbers such as 0,1, got {self.gpus}")
        return [int(part) for part in parts]
