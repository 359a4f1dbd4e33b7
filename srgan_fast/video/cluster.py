"""Workers on many machines: actors of a Ray cluster, each an upscaler on a GPU or on some cores of its own.

Ray starts actors, tells when one is gone, and carries requests; who renders what is decided in `video.schedule`, and
what is finished is told by the folders of the jobs, which all machines must share.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Any

from srgan_fast.errors import BackendUnavailable, UsageError
from srgan_fast.video.workers import Failed, Frames, Gone, Make, Ready, Renderer, Request, Word, portable, where

# Between two questions to an actor about its frames.
_ASK_S = 0.5
# That actors may take to start: the machine may have to load torch from a slow disk.
_LATE_S = 60.0

_log = logging.getLogger(__name__)


class _Actor:
    """What runs in a process of Ray's. Its methods run side by side, each in a thread."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._renderer: Renderer | None = None
        self._now = Frames(0, {})

    def start(self, make: Make, threads: int | None) -> Ready | Failed:
        try:
            self._renderer = Renderer(make, threads)
            return Ready(self._renderer.traits, where())
        except Exception as error:
            return Failed(portable(error))

    def render(self, request: Request) -> Word:
        assert self._renderer is not None
        self._now = Frames(0, {})
        return self._renderer.render(request, self._tell, self._stop.is_set)

    def frames(self) -> Frames:
        return self._now

    def stop(self) -> None:
        self._stop.set()

    def _tell(self, frames: Frames) -> None:
        self._now = frames


class Actors:
    """Actors of the cluster that RAY_ADDRESS names or that runs here, else of this machine; a context manager.

    `gpus` says whether each has a GPU, None whether there are any in the cluster; `workers` how many there are: by
    default one for each GPU, or for each machine; `cores` how many each has: by default as many as there are for all.

    Raises:  BackendUnavailable where Ray is not installed or cannot be reached; UsageError for more workers than fit
    """

    def __init__(
        self, make: Make, workers: int | None = None, *, gpus: bool | None = None, cores: int | None = None
    ) -> None:
        self._ray = _ray()
        self._make = make
        self.used = False
        self._ours = not self._ray.is_initialized()
        self._actors: list[Any] = []
        if self._ours:
            _begin(self._ray)
        try:
            machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            if gpus is None:
                gpus = any(machine.get("GPU", 0) >= 1 for machine in machines)
            self.count, most = _shares(machines, workers, gpus)
            if cores is not None and not 0 <= cores <= most:
                raise UsageError(f"expected up to {most} cores for each of {self.count} actors, got {cores}")
            cores = most if cores is None else cores
            self._threads = None if gpus else cores
            self._kind = self._ray.remote(max_concurrency=4, max_restarts=0, num_cpus=cores, num_gpus=1 if gpus else 0)(
                _Actor
            )
            self._actors = [self._kind.remote() for _ in range(self.count)]
            self._waiting: dict[Any, tuple[int, bool]] = {}
            self._asked_s = dict.fromkeys(range(self.count), 0.0)
            self._rendering: set[int] = set()
            self._stopping = self._began = False
            self._since_s = time.monotonic()
            for worker in range(self.count):
                self._wait_for(worker, self._actors[worker].start.remote(make, self._threads))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Actors:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def begin(self, worker: int, request: Request) -> None:
        """Give a worker that has nothing to do a segment."""
        self._rendering.add(worker)
        self._wait_for(worker, self._actors[worker].render.remote(request))

    def listen(self, seconds: float) -> list[tuple[int, Word]]:
        """What workers have said; waits for a word no longer than that."""
        self._ask()
        if not self._began and time.monotonic() - self._since_s > _LATE_S:
            self._since_s = time.monotonic()
            _log.warning("still waiting for the first of %d actors; `ray status` says what is free", self.count)
        if not self._waiting:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=seconds)
        said: list[tuple[int, Word]] = []
        for reference in ready:
            worker, passing = self._waiting.pop(reference)
            try:
                word = self._ray.get(reference)
            except self._ray.exceptions.RayActorError as error:
                word = Gone(_line(error))
            except self._ray.exceptions.RayError as error:
                word = Failed(RuntimeError(_line(error)))
            if passing and not (isinstance(word, Frames) and word.frames):
                continue  # there is none yet, or the other word of this worker says what is wrong
            if not passing:
                self._began = True
                self._rendering.discard(worker)
            said.append((worker, word))
        return said

    def replace(self, worker: int) -> None:
        """End a worker, if it has not ended, and start another one in its place."""
        self._ray.kill(self._actors[worker])
        self._forget(worker)
        self._actors[worker] = self._kind.remote()
        self._wait_for(worker, self._actors[worker].start.remote(self._make, self._threads))
        if self._stopping:
            self._actors[worker].stop.remote()

    def stop(self) -> None:
        """Tell all to finish what is under way at once, in good order."""
        self._stopping = True
        for actor in self._actors:
            actor.stop.remote()

    def close(self) -> None:
        """End all of them; what is under way is let go."""
        if self._ours:
            self._ray.shutdown()
        else:
            for actor in self._actors:
                self._ray.kill(actor)

    def _wait_for(self, worker: int, reference: Any, passing: bool = False) -> None:
        self._waiting[reference] = worker, passing

    def _ask(self) -> None:
        """Ask those that render about their frames, now and then."""
        now_s = time.monotonic()
        asked = {worker for worker, passing in self._waiting.values() if passing}
        for worker in self._rendering - asked:
            if now_s - self._asked_s[worker] >= _ASK_S:
                self._asked_s[worker] = now_s
                self._wait_for(worker, self._actors[worker].frames.remote(), passing=True)

    def _forget(self, worker: int) -> None:
        self._rendering.discard(worker)
        for reference in [each for each, (of, _) in self._waiting.items() if of == worker]:
            del self._waiting[reference]


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise BackendUnavailable(f"--cluster ray needs Ray ({error}); pip install 'srgan-fast[ray]'") from error
    return ray


def _begin(ray: Any) -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine; start one here where there is none."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a cluster that begins here reports to its makers
    try:
        # Not "auto": that would also take the cluster which another run has started for itself, and ends with it.
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendUnavailable(
            f"no Ray cluster can be reached or started ({_line(error)}); look at `ray status` and RAY_ADDRESS"
        ) from error
    finally:
        # It takes SIGTERM for itself, by which a run is stopped in good order.
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _shares(machines: list[dict[str, float]], workers: int | None, gpus: bool) -> tuple[int, int]:
    """How many actors there are, and how many cores each has: as many as all of them can have.

    Raises:  UsageError for more than there is room for
    """
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    if gpus:
        there = [int(machine.get("GPU", 0)) for machine in machines]
        if workers is None:
            workers = sum(there)
        if not 0 < workers <= sum(there):
            raise UsageError(f"expected --workers up to the {sum(there)} GPUs of the cluster, got {workers}")
        per_gpu = [core // gpu for core, gpu in zip(cores, there, strict=True) if gpu]
        return workers, max(0, min(per_gpu))
    if workers is None:
        workers = max(1, sum(core > 0 for core in cores))
    share = max(cores, default=0)
    while share and sum(core // share for core in cores) < workers:
        share -= 1
    if not share:
        raise UsageError(f"expected --workers up to the {sum(cores)} cores of the cluster, got {workers}")
    return workers, share


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
