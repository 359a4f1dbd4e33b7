"""Workers that render segments: what one does, what it says, and processes of this machine that are some.

A worker has an upscaler of its own and takes one segment at a time. What it says goes to `video.schedule`, which gives
segments out; what it renders goes into the folder of the job. So a worker that dies takes nothing along but the segment
that it was at.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from srgan_fast.errors import DistributedError
from srgan_fast.reuse import Reuse
from srgan_fast.video.job import Busy, Task, Traits, render
from srgan_fast.video.segments import Segment

if TYPE_CHECKING:
    from srgan_fast.upscaler import Upscaler

# Builds a worker's upscaler, there: it travels, so it is a function of a module, or a `partial` of one.
Make = Callable[[], "Upscaler"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Between two words about the frames of a segment.
_TELL_S = 0.05
# That a process may take to end when it has nothing more to do.
_END_S = 5.0


@dataclass(frozen=True)
class Request:
    """A segment to be rendered, and whether what did not change from frame to frame is reused."""

    task: Task
    segment: Segment
    reuse: Literal["auto", "off"] = "auto"


@dataclass(frozen=True)
class Ready:
    """A worker can begin; `where` is its process and machine."""

    traits: Traits
    where: str


@dataclass(frozen=True)
class Frames:
    """How many frames of its segment a worker has written so far, and the seconds that each stage has worked."""

    frames: int
    busy_s: Busy


@dataclass(frozen=True)
class Done:
    """A segment is finished, or was stopped before its end; `given` and `computed` count LR pixels."""

    finished: bool
    frames: int
    busy_s: Busy
    given: int
    computed: int
    not_reused: str


@dataclass(frozen=True)
class Failed:
    """What a worker met instead: an error of ours is the input's or the machine's, and would come again."""

    error: Exception


@dataclass(frozen=True)
class Gone:
    """A worker has ended without a word; `how` says what is known of it."""

    how: str


Word = Ready | Frames | Done | Failed | Gone


class Crew(Protocol):
    """Workers by their numbers, 0 to `count` - 1; each says Ready when it has begun, and once more when replaced.

    They serve one call of `upscale_videos`, which notes in `used` that it has them.
    """

    count: int
    used: bool

    def begin(self, worker: int, request: Request) -> None:
        """Give a worker that has nothing to do a segment."""

    def listen(self, seconds: float) -> list[tuple[int, Word]]:
        """What workers have said; waits for a word no longer than that."""

    def replace(self, worker: int) -> None:
        """End a worker, if it has not ended, and start another one in its place."""

    def stop(self) -> None:
        """Tell all to finish what is under way at once, in good order."""

    def close(self) -> None:
        """End all of them."""


class Renderer:
    """What a worker is, wherever it runs: its upscaler, and what it remembers from one segment to the next.

    Raises:  what `make` raises
    """

    def __init__(self, make: Make, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._upscaler = make()
        self.traits = Traits.of(self._upscaler)
        self._reuse: tuple[Any, Reuse] | None = None

    def render(self, request: Request, progress: Callable[[Frames], object], stop: Callable[[], bool]) -> Done | Failed:
        """Render a segment; no exception leaves it."""
        try:
            _check_sight(request.task)
            reuse = self._reuse_for(request)
            given, computed = reuse.counts
            last = Frames(0, {})

            def tell(frames: int, busy_s: Busy) -> None:
                nonlocal last
                last = Frames(frames, busy_s)
                progress(last)

            finished = render(request.task, self._upscaler, [request.segment], reuse=reuse, progress=tell, stop=stop)
            now_given, now_computed = reuse.counts
            return Done(finished, last.frames, last.busy_s, now_given - given, now_computed - computed, reuse.reason)
        except Exception as error:
            return Failed(portable(error))

    def _reuse_for(self, request: Request) -> Reuse:
        """The same for all segments of a video: what is found to be no use there is tried once."""
        key = request.task.folder, request.reuse
        if self._reuse is None or self._reuse[0] != key:
            self._reuse = key, Reuse(self._upscaler, request.reuse, shared=True)
        return self._reuse[1]


def where() -> str:
    """This process and machine, for a reader."""
    return f"process {os.getpid()} on {os.uname().nodename}"


def portable(error: Exception) -> Exception:
    """An error that can travel to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _check_sight(task: Task) -> None:
    """A worker on another machine must see the files that the one which plans has made."""
    for path in (task.source, task.folder.path / "manifest.json"):
        if not path.exists():
            raise DistributedError(
                f"{where()} cannot see {path}; every machine needs the same folders under the same names (NFS or the"
                " like), for inputs and outputs"
            )


@dataclass(frozen=True)
class Place:
    """Where a process works: on one GPU, by its number among those that torch sees, or on threads of the CPU."""

    gpu: int | None = None
    threads: int | None = None


class Processes:
    """One process for each place on this machine; a context manager.

    They are started by `spawn`: CUDA survives no fork, and neither do the threads of torch and FFmpeg. None outlives
    this process, not even where it is killed.
    """

    def __init__(self, make: Make, places: Sequence[Place]) -> None:
        self.count, self.used = len(places), False
        self._make, self._places = make, places
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = []
        self._ends: list[Connection | None] = []
        self._stopping = False
        try:
            for place in places:
                process, end = self._start(place)
                self._processes.append(process)
                self._ends.append(end)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def begin(self, worker: int, request: Request) -> None:
        """Give a worker a segment; one that is gone says so when it is listened to."""
        self._send(worker, request)

    def listen(self, seconds: float) -> list[tuple[int, Word]]:
        """What workers have said; waits for a word no longer than that."""
        numbers = {end: number for number, end in enumerate(self._ends) if end is not None}
        said: list[tuple[int, Word]] = []
        for end in wait(list(numbers), seconds):
            assert isinstance(end, Connection)
            number = numbers[end]
            try:
                said.append((number, end.recv()))
            except (EOFError, OSError):
                said.append((number, Gone(self._end_of(number))))
        return said

    def replace(self, worker: int) -> None:
        """End a worker, if it has not ended, and start another one in its place."""
        self._end_of(worker, kill=True)
        self._processes[worker], self._ends[worker] = self._start(self._places[worker])
        if self._stopping:
            self._send(worker, None)

    def stop(self) -> None:
        """Tell all to finish what is under way at once, in good order."""
        self._stopping = True
        for number in range(len(self._ends)):
            self._send(number, None)

    def close(self) -> None:
        """End all of them; what is under way is let go."""
        for end in self._ends:
            if end is not None:
                end.close()
        for process in self._processes:
            process.join(_END_S)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._ends = [], []

    def _start(self, place: Place) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._make, place), daemon=True)
        # A Ctrl-C goes to every process of a terminal: it would hit one that has not yet said how it takes it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        return process, ours

    def _send(self, worker: int, what: Request | None) -> None:
        end = self._ends[worker]
        try:
            if end is not None:
                end.send(what)
        except OSError:
            pass  # it is gone, and will be heard to be

    def _end_of(self, worker: int, *, kill: bool = False) -> str:
        process, end = self._processes[worker], self._ends[worker]
        if end is not None:
            end.close()
            self._ends[worker] = None
        if kill:
            process.kill()
        process.join(_END_S)
        code = process.exitcode
        return f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"


def _serve(end: Connection, make: Make, place: Place) -> None:
    """The life of a process: make an upscaler, render what comes, and end when whoever started it is gone."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # the one that started us has had it too, and tells us to stop
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    stopping = threading.Event()

    def hear() -> None:
        while True:
            try:
                what = end.recv()
            except (EOFError, OSError):
                os._exit(0)
            if what is None:
                stopping.set()
            else:
                requests.put(what)

    threading.Thread(target=hear, daemon=True).start()
    last_s = 0.0

    def tell(frames: Frames) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= _TELL_S:
            last_s = time.monotonic()
            end.send(frames)

    try:
        if place.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = _only(place.gpu, os.environ.get("CUDA_VISIBLE_DEVICES"))
        renderer = Renderer(make, place.threads)
        end.send(Ready(renderer.traits, where()))
        while True:
            end.send(renderer.render(requests.get(), tell, stopping.is_set))
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        end.send(Failed(portable(error)))
        threading.Event().wait()  # until it is let go: then the word has arrived


def _only(gpu: int, visible: str | None) -> str:
    """A GPU by its number among those that are visible, as CUDA wants it named: so decoder and encoder take it too."""
    return visible.split(",")[gpu].strip() if visible else str(gpu)
