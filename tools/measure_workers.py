"""How much faster a video is by two workers than by one, on the cores of this machine: medians of interleaved runs.

    python tools/measure_workers.py CLIP ray|processes [--rounds 5] [--model srresnet_x4_small] [--segment-s 1]

Three crews take turns: one worker with one thread, two with one each, one with two. Only the time from when all workers
are ready counts; every result must have the bytes of one process with as many threads.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from srgan_fast import Upscaler
from srgan_fast.video import job, segments
from srgan_fast.video.job import VideoOptions, upscale_video
from srgan_fast.video.schedule import upscale_videos
from srgan_fast.video.summary import Summary
from srgan_fast.video.workers import Place, Processes, Ready, Word

CREWS = ((1, 1), (2, 1), (1, 2))


def crew_of(kind: str, make: Any, workers: int, threads: int) -> Any:
    """Workers on this machine, each with so many threads: processes, or actors of Ray."""
    if kind == "processes":
        return Processes(make, [Place(threads=threads)] * workers)
    from srgan_fast.video.cluster import Actors

    return Actors(make, workers, gpus=False, cores=threads)


class Gathered:
    """A crew that lets go of the first word that it is ready only when the last worker is."""

    def __init__(self, crew: Any) -> None:
        self._crew, self.count, self.used = crew, crew.count, False
        self._held: list[tuple[int, Word]] = []
        self.ready_s = 0.0

    def listen(self, seconds: float) -> list[tuple[int, Word]]:
        """What workers have said; the first time, all that was said until each of them was ready."""
        while not self.ready_s:
            self._held += self._crew.listen(seconds)
            if sum(isinstance(word, Ready) for _, word in self._held) == self.count:
                self.ready_s = time.perf_counter()
                return self._held
        return self._crew.listen(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._crew, name)


def main() -> None:
    """Measure, and print the medians and the digests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("kind", choices=("ray", "processes"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="srresnet_x4_small")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--segment-s", type=float, default=1.0)
    options = parser.parse_args()
    job.cut = lambda keyframes, time_base: segments.cut(keyframes, time_base, options.segment_s)
    make = partial(Upscaler, options.model, device="cpu", backend=options.backend)
    quick = VideoOptions(preset="ultrafast", reuse="off")
    seconds: dict[tuple[int, int], list[float]] = {each: [] for each in CREWS}
    with tempfile.TemporaryDirectory() as folder:
        target, wanted = Path(folder) / "out.mp4", {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            upscale_video(options.clip, target, make(), quick)
            wanted[threads] = hashlib.sha256(target.read_bytes()).hexdigest()
        for _ in range(options.rounds):
            for workers, threads in CREWS:
                with crew_of(options.kind, make, workers, threads) as crew:
                    gathered = Gathered(crew)
                    (outcome,) = upscale_videos([(options.clip, target)], gathered, quick)
                    seconds[workers, threads].append(time.perf_counter() - gathered.ready_s)
                assert isinstance(outcome.result, Summary), outcome.result
                assert hashlib.sha256(target.read_bytes()).hexdigest() == wanted[threads]
    medians = {each: statistics.median(found) for each, found in seconds.items()}
    for (workers, threads), found in seconds.items():
        said = ", ".join(f"{each:.2f}" for each in found)
        print(f"{workers} x {threads} threads: median {medians[workers, threads]:.2f} s ({said})")
    print(f"two against one with one thread: {medians[1, 1] / medians[2, 1]:.2f}x")
    print(f"two against one with two threads: {medians[1, 2] / medians[2, 1]:.2f}x")
    print(f"digest of one thread {wanted[1][:12]}, of two {wanted[2][:12]}")


if __name__ == "__main__":
    main()
