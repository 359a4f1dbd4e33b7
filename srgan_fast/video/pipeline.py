"""A chain of threads with bounded queues: each stage works while the others do, and none runs far ahead.

A stage is a function from an iterator to an iterator, so it may batch, drop or add. The first error of any stage ends
all of them and is raised where the results are read. A stage that stops reading ends those before it, quietly: that is
how a run is stopped in good order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any

Stage = tuple[str, Callable[[Iterator[Any]], Iterable[Any]]]

THREAD_NAME = "srgan-fast video: "
# After a second Ctrl-C nobody waits for a frame of minutes.
_IMPATIENT_S = 2.0
_END = object()


class _Closed(Exception):
    """Whoever is at the other end of a queue is gone."""


class _Queue:
    """A bounded queue whose two ends wake at once when the other ends it or the run is over."""

    def __init__(self, depth: int) -> None:
        self._items: deque[Any] = deque()
        self._depth, self._closed = depth, False
        self._changed = threading.Condition()

    def put(self, item: object) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if self._closed:
                raise _Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._items))
            if self._closed:
                raise _Closed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


class Pipeline:
    """Run stages over a source, each in a thread of its own; iterate over it for what comes out at the end.

    `source` is the name and the items of the first stage, `depth` what a queue between two stages holds. Leaving the
    block ends every thread, whatever they are at.

    Raises:  from the iteration, the first error that any stage met
    """

    def __init__(self, source: tuple[str, Iterable[Any]], stages: Sequence[Stage], *, depth: int = 2) -> None:
        self._queues = [_Queue(depth) for _ in range(len(stages) + 1)]
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._began = time.perf_counter()
        self._idle_s = dict.fromkeys((source[0], *(name for name, _ in stages)), 0.0)
        self._since: dict[str, float | None] = {}
        self._ended_s: dict[str, float] = {}
        self._cpu_s = dict.fromkeys(self._idle_s, 0.0)
        self._threads = [self._thread(source[0], lambda: iter(source[1]), None, self._queues[0])]
        for index, (name, work) in enumerate(stages):
            before, after = self._queues[index : index + 2]
            self._threads.append(self._thread(name, partial(self._staged, name, work, before), before, after))

    def __enter__(self) -> Pipeline:
        self._began = time.perf_counter()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for queue in self._queues:
            queue.close()
        impatient = kind is not None and issubclass(kind, KeyboardInterrupt)
        give_up = time.monotonic() + _IMPATIENT_S
        for thread in self._threads:
            thread.join(max(0.0, give_up - time.monotonic()) if impatient else None)

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                item = self._queues[-1].get()
            except _Closed:
                item = _END
            if self._error is not None:
                raise self._error
            if item is _END:
                return
            yield item

    def busy_s(self) -> dict[str, float]:
        """Seconds that each stage has worked so far, rather than waited for the one before or after it."""
        now = time.perf_counter()
        busy_s = {}
        for name, idle_s in self._idle_s.items():
            idle_s += now - since if (since := self._since.get(name)) is not None else 0.0
            busy_s[name] = max(0.0, self._ended_s.get(name, now) - self._began - idle_s)
        return busy_s

    def cpu_s(self) -> dict[str, float]:
        """Seconds that each stage's own thread has had of a core, up to where it last waited for another stage.

        Without the threads that a library starts for it: those of an encoder, or of a convolution.
        """
        return dict(self._cpu_s)

    def _thread(
        self, name: str, work: Callable[[], Iterable[Any]], before: _Queue | None, after: _Queue
    ) -> threading.Thread:
        def run() -> None:
            results: Iterable[Any] = ()
            try:
                results = work()
                for item in results:
                    self._wait(name, partial(after.put, item))
                self._wait(name, partial(after.put, _END))
            except _Closed:
                pass
            except BaseException as error:
                self._fail(error)
            finally:
                self._ended_s[name] = time.perf_counter()
                self._close(results)
                self._cpu_s[name] = time.thread_time()
                if before is not None:
                    before.close()

        # A daemon: a frame of minutes must not keep a process that was told twice to stop.
        return threading.Thread(target=run, name=THREAD_NAME + name, daemon=True)

    def _close(self, results: Iterable[Any]) -> None:
        """End a generator here, not when its memory is collected: it closes files and removes half a segment."""
        try:
            if isinstance(results, Generator):
                results.close()
        except _Closed:
            pass
        except BaseException as error:
            self._fail(error)

    def _staged(self, name: str, work: Callable[[Iterator[Any]], Iterable[Any]], queue: _Queue) -> Iterable[Any]:
        return work(self._read(name, queue))

    def _read(self, name: str, queue: _Queue) -> Iterator[Any]:
        while (item := self._wait(name, queue.get)) is not _END:
            yield item

    def _wait(self, name: str, work: Callable[[], Any]) -> Any:
        start = self._since[name] = time.perf_counter()
        self._cpu_s[name] = time.thread_time()
        try:
            return work()
        finally:
            self._since[name] = None
            self._idle_s[name] += time.perf_counter() - start

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
        for queue in self._queues:
            queue.close()
