"""Many videos over many workers: segments are given out one at a time, and given out again where a worker dies.

What is finished is told by the folders of the jobs alone; here is only kept who is at what. The segments of a video go
out in their order, and those of the next one as soon as a worker has nothing left to do, so none waits for the last
segment of a video. Planning and joining run beside all this.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from srgan_fast.errors import DistributedError, Interrupted, SRGANFastError, UsageError
from srgan_fast.video.job import Busy, Effort, Job, Progress, Traits, VideoOptions
from srgan_fast.video.pipeline import THREAD_NAME
from srgan_fast.video.segments import Segment
from srgan_fast.video.summary import Summary
from srgan_fast.video.workers import Crew, Done, Failed, Frames, Gone, Ready, Request, Word

# Workers that may die over one segment, and times that a worker may die in a row, until it is given up.
TRIES = 3
_LISTEN_S = 0.1
# Videos that are joined at once, one of which may be a film of many gigabytes.
_JOINED_AT_ONCE = 4

_NOTHING = Frames(0, {})
_USUAL = VideoOptions()

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one video: a summary, or an error."""

    source: Path
    target: Path
    result: Summary | SRGANFastError


def upscale_videos(
    pairs: Iterable[tuple[Path, Path]],
    crew: Crew,
    options: VideoOptions = _USUAL,
    *,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Upscale video files, (input, output) each, by the workers of a crew; gives what became of each as it is known.

    Each output has the bytes that `upscale_video` gives by an upscaler like theirs. One that fails does not stop the
    others. `progress` is told the frames of all videos, and how many there will be where there is one video only. When
    `stop` says so, all workers finish what is under way, and Interrupted is raised after what is known has been given.

    Raises:  Interrupted; DistributedError where no worker is left, or the workers differ; what a worker raises when it
             starts; UsageError for workers that have served a call before
    """
    if crew.used:
        raise UsageError("expected workers that have had no videos yet; give all videos in one call, or make new ones")
    crew.used = True
    return _Schedule(list(pairs), crew, options, progress, stop).run()


class _Active:
    """A video whose segments are given out."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.todo = deque(job.todo)
        self.tries: Counter[Segment] = Counter()
        self.error: SRGANFastError | None = None
        self.joining: Future[Summary] | None = None
        self.frames = job.earlier
        self.busy_s: Counter[str] = Counter()
        self.given = self.computed = 0
        self.not_reused = ""

    def add(self, done: Done) -> None:
        """Note what a segment took."""
        self.frames += done.frames
        self.busy_s.update(done.busy_s)
        self.given += done.given
        self.computed += done.computed
        self.not_reused = done.not_reused or self.not_reused

    def effort(self, workers: int) -> Effort:
        """What all segments took, a worker."""
        saved = max(0.0, 1 - self.computed / self.given) if self.given else 0.0
        return Effort({name: busy_s / workers for name, busy_s in self.busy_s.items()}, saved, self.not_reused)

    def fail(self, error: SRGANFastError) -> None:
        """Give out no more of it; what others are at is still finished, for a later run."""
        self.error = self.error or error
        self.todo.clear()


@dataclass
class _AtWork:
    active: _Active
    segment: Segment
    now: Frames


class _Schedule:
    def __init__(
        self,
        pairs: list[tuple[Path, Path]],
        crew: Crew,
        options: VideoOptions,
        progress: Progress | None,
        stop: Callable[[], bool],
    ) -> None:
        self._pairs, self._crew, self._options = deque(pairs), crew, options
        self._count, self._single = len(pairs), len(pairs) == 1
        self._progress, self._stop = progress, stop
        self._stopping = False
        self._traits: tuple[Traits, str] | None = None
        self._where: dict[int, str] = {}
        self._alive = set(range(crew.count))
        self._idle: set[int] = set()
        self._at_work: dict[int, _AtWork] = {}
        self._strikes: Counter[int] = Counter()
        self._tried: set[tuple[_Active, Segment, int]] = set()
        self._active: list[_Active] = []
        self._planned: tuple[tuple[Path, Path], Future[Job]] | None = None
        self._frames = 0
        self._busy_s: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(1 + _JOINED_AT_ONCE, thread_name_prefix=f"{THREAD_NAME}join")

    def run(self) -> Iterator[Outcome]:
        wait = True
        try:
            while True:
                if not self._stopping and self._stop():
                    self._stopping = True
                    self._crew.stop()
                yield from self._plan()
                self._give_out()
                yield from self._conclude()
                if self._over():
                    break
                for worker, word in self._crew.listen(_LISTEN_S):
                    self._hear(worker, word)
            if self._stopping and (self._active or self._pairs or self._planned):
                raise Interrupted(self._said())
        except KeyboardInterrupt:
            wait = False
            raise
        finally:
            self._threads.shutdown(wait, cancel_futures=True)
            if wait:
                self._close()

    def _over(self) -> bool:
        joining = any(active.joining is not None for active in self._active)
        if self._stopping:
            return not self._at_work and not joining
        return not (self._active or self._pairs or self._planned)

    def _plan(self) -> Iterator[Outcome]:
        """Have the next video ready before the segments of this one run out."""
        if self._planned is not None and self._planned[1].done():
            (source, target), planned = self._planned
            self._planned = None
            try:
                self._active.append(_Active(planned.result()))
            except SRGANFastError as error:
                yield Outcome(source, target, error)
        # Only a worker can say how large its results are, and by what.
        if self._planned is None and self._pairs and self._traits is not None and not self._stopping:
            waiting = sum(len(active.todo) for active in self._active)
            if waiting <= len(self._alive):
                pair = self._pairs.popleft()
                self._planned = pair, self._threads.submit(Job, *pair, self._traits[0], self._options)

    def _give_out(self) -> None:
        if self._stopping:
            return
        for worker in sorted(self._idle):
            found = self._next(worker)
            if found is not None:
                active, segment = found
                active.todo.remove(segment)
                self._idle.remove(worker)
                self._at_work[worker] = _AtWork(active, segment, _NOTHING)
                self._crew.begin(worker, Request(active.job.task, segment, self._options.reuse))

    def _next(self, worker: int) -> tuple[_Active, Segment] | None:
        """The first segment that this worker has not died over yet, unless all others have, too."""
        for active in self._active:
            for segment in active.todo:
                if all((active, segment, each) in self._tried for each in (self._alive - {worker})) or (
                    (active, segment, worker) not in self._tried
                ):
                    return active, segment
        return None

    def _conclude(self) -> Iterator[Outcome]:
        """Join what is rendered, and say what is joined or has failed."""
        busy = {id(at.active) for at in self._at_work.values()}
        for active in list(self._active):
            if active.joining is None and not active.todo and id(active) not in busy:
                if active.error is not None:
                    yield self._end(active, active.error)
                else:
                    active.joining = self._threads.submit(active.job.finish, active.effort(self._crew.count))
            if active.joining is not None and active.joining.done():
                try:
                    result: Summary | SRGANFastError = active.joining.result()
                except SRGANFastError as error:
                    result = error
                yield self._end(active, result)

    def _end(self, active: _Active, result: Summary | SRGANFastError) -> Outcome:
        self._active.remove(active)
        self._frames += active.frames
        self._busy_s.update(active.busy_s)
        active.job.close()
        return Outcome(active.job.source, active.job.target, result)

    def _hear(self, worker: int, word: Word) -> None:
        at = self._at_work.get(worker)
        if isinstance(word, Ready):
            self._meet(worker, word)
        elif isinstance(word, Frames):
            if at is not None:
                at.now = word
                self._tell()
        elif isinstance(word, Done):
            assert at is not None
            del self._at_work[worker]
            self._idle.add(worker)
            self._strikes[worker] = 0
            if word.finished:
                at.active.add(word)
                self._tell()
            else:
                at.active.todo.appendleft(at.segment)
        elif isinstance(word, Failed) and isinstance(word.error, SRGANFastError):
            # Of a worker that cannot begin, or cannot see the files: it would be so with every video.
            if at is None or isinstance(word.error, DistributedError):
                raise word.error
            del self._at_work[worker]
            self._idle.add(worker)
            at.active.fail(word.error)
        else:
            self._lose(worker, word.how if isinstance(word, Gone) else f"failed: {_named(word.error)}")

    def _meet(self, worker: int, ready: Ready) -> None:
        if self._traits is None:
            self._traits = ready.traits, ready.where
        first, there = self._traits
        if ready.traits != first:
            differ = [
                f"{name} {ours} and {theirs}"
                for name, ours in vars(first).items()
                if (theirs := vars(ready.traits)[name]) != ours
            ]
            raise DistributedError(
                f"expected all workers to be alike, got {', '.join(differ)} ({there}; {ready.where}); install the same"
                " versions, and name --backend and --precision"
            )
        self._where[worker] = ready.where
        self._idle.add(worker)

    def _lose(self, worker: int, how: str) -> None:
        """A worker has died, or is in a state that nobody knows: another takes its place and another its segment."""
        self._idle.discard(worker)
        at = self._at_work.pop(worker, None)
        self._strikes[worker] += 1
        what = "before it had a segment"
        if at is not None:
            active, segment = at.active, at.segment
            active.tries[segment] += 1
            self._tried.add((active, segment, worker))
            what = f"over segment {segment.index} of {active.job.source}"
            if active.tries[segment] >= TRIES:
                self._strikes[worker] = 0  # then it is the segment
                active.fail(
                    DistributedError(
                        f"{TRIES} workers ended {what}, the last: {how}; look at its memory and at the system's log,"
                        " the same command goes on"
                    )
                )
            elif active.error is None:
                active.todo.appendleft(segment)
        if self._stopping:
            return
        _log.warning("worker %d (%s) ended %s: %s", worker, self._where.get(worker, "not begun"), what, how)
        if self._strikes[worker] < TRIES:
            self._crew.replace(worker)
            return
        self._alive.remove(worker)
        if not self._alive:
            raise DistributedError(
                f"no worker is left: the last ended {TRIES} times in a row, at last {what}: {how}; what is finished is"
                " kept, the same command goes on"
            )

    def _tell(self) -> None:
        if self._progress is None:
            return
        busy_s = Counter(self._busy_s)
        frames = self._frames
        for active in self._active:
            frames += active.frames
            busy_s.update(active.busy_s)
        for at in self._at_work.values():
            frames += at.now.frames
            busy_s.update(at.now.busy_s)
        total = self._active[0].job.total if self._single else None
        mean: Busy = {name: seconds / self._crew.count for name, seconds in busy_s.items()}
        self._progress(frames, total, mean)

    def _said(self) -> str:
        """Leave what there is of each video beside its target, and say so."""
        said = [active.job.stopped() for active in self._active]
        if self._single:
            return said[0] if said else "stopped; nothing was written, the same command starts again"
        left = len(self._active) + len(self._pairs) + bool(self._planned)
        return f"stopped with {left} of {self._count} videos unfinished, the same command goes on"

    def _close(self) -> None:
        for active in self._active:
            active.job.close()
        if self._planned is not None:
            planned = self._planned[1]
            if not planned.cancelled() and planned.exception() is None:
                planned.result().close()


def _named(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
