"""Frames as a stream: one thread upscales them in order, while the caller fetches the next and uses the last.

The source is read in the caller's own thread (by `astream` in the event loop, or in a thread where it is no async one),
so nothing has to be safe between threads but the frames, which are copied when they are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from srgan_fast.errors import UsageError
from srgan_fast.exchange import borrowed
from srgan_fast.reuse import Reuse
from srgan_fast.upscaler import Layout, Upscaler

T = TypeVar("T")

_END: Any = object()


class _Worker:
    """Upscales the frames of one stream, one after another, in a thread and in the CUDA stream of whoever made it."""

    def __init__(
        self,
        upscaler: Upscaler,
        layout: Layout | None,
        color: Literal["rgb", "bgr"],
        reuse: Reuse | Literal["auto", "off"],
    ) -> None:
        self._upscaler, self._layout, self._color = upscaler, layout, color
        self._own = not isinstance(reuse, Reuse)
        self._reuse = reuse if isinstance(reuse, Reuse) else Reuse(upscaler, reuse)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="srgan-fast-stream")
        cuda = upscaler.device != "cpu"
        self._cuda = torch.cuda.current_stream(upscaler.device) if cuda else None

    def job(self, frame: T) -> Callable[[], T]:
        """Take a frame; what is returned upscales it."""
        tensor, back = borrowed(frame)
        tensor = tensor.clone()  # many sources fill one buffer again and again

        def upscaled() -> T:
            with contextlib.nullcontext() if self._cuda is None else torch.cuda.stream(self._cuda):
                return cast(T, back(self._upscaler.upscaled(tensor, self._layout, self._color, self._run)))

        return upscaled

    def _run(self, frames: Tensor, layout: Layout) -> Tensor:
        if len(frames) == 1 and frames.dtype in (torch.uint8, torch.uint16):
            result = self._reuse(frames[0])
            # Turning the colours round writes into it.
            return (result.clone() if self._reuse.shared and self._color == "bgr" else result)[None]
        return self._upscaler.run(frames, layout)

    def close(self) -> None:
        """End the thread, once it has done the frame that it is at."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        if self._own:
            self._reuse.forget()


def stream(
    upscaler: Upscaler,
    frames: Iterable[T],
    *,
    layout: Layout | None,
    color: Literal["rgb", "bgr"],
    reuse: Reuse | Literal["auto", "off"],
    ahead: int,
) -> Iterator[T]:
    """See `Upscaler.stream`."""
    return _in_order(_worker(upscaler, layout, color, reuse, ahead), iter(frames), ahead)


def astream(
    upscaler: Upscaler,
    frames: Iterable[T] | AsyncIterable[T],
    *,
    layout: Layout | None,
    color: Literal["rgb", "bgr"],
    reuse: Reuse | Literal["auto", "off"],
    ahead: int,
) -> AsyncIterator[T]:
    """See `Upscaler.astream`."""
    worker = _worker(upscaler, layout, color, reuse, ahead)
    if isinstance(frames, AsyncIterable):
        return _in_order_async(worker, aiter(frames), ahead)
    return _in_order_async(worker, _Threaded(iter(frames)), ahead)


def _worker(
    upscaler: Upscaler,
    layout: Layout | None,
    color: Literal["rgb", "bgr"],
    reuse: Reuse | Literal["auto", "off"],
    ahead: int,
) -> _Worker:
    if ahead < 1:
        raise UsageError(f"expected ahead of at least 1 frame, got {ahead}; 2 is the default")
    return _Worker(upscaler, layout, color, reuse)


def _in_order(worker: _Worker, source: Iterator[T], ahead: int) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()
    failure: Exception | None = None
    open_ = True
    try:
        while open_ or waiting:
            while open_ and len(waiting) < ahead:
                try:
                    waiting.append(worker.pool.submit(worker.job(next(source))))
                except StopIteration:
                    open_ = False
                except Exception as error:
                    # What came before it is still good, and comes first.
                    failure, open_ = error, False
            if waiting:
                yield waiting.popleft().result()
        if failure is not None:
            raise failure
    finally:
        worker.close()


async def _in_order_async(worker: _Worker, source: AsyncIterator[T], ahead: int) -> AsyncIterator[T]:
    loop = asyncio.get_running_loop()
    waiting: deque[asyncio.Future[T]] = deque()
    coming: asyncio.Future[T] | None = None
    failure: Exception | None = None
    open_ = True
    try:
        while open_ or waiting:
            if open_ and coming is None and len(waiting) < ahead:
                coming = asyncio.ensure_future(_next(source))
            # A result that is there does not wait for a frame that is not.
            await asyncio.wait([*([coming] if coming else []), *list(waiting)[:1]], return_when="FIRST_COMPLETED")
            if coming is not None and coming.done():
                done, coming = coming, None
                try:
                    frame = done.result()
                    if frame is _END:
                        open_ = False
                    else:
                        waiting.append(loop.run_in_executor(worker.pool, worker.job(frame)))
                except Exception as error:
                    failure, open_ = error, False
            if waiting and waiting[0].done():
                yield waiting.popleft().result()
        if failure is not None:
            raise failure
    finally:
        left = [*([coming] if coming else []), *waiting]
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        try:
            if isinstance(source, _Threaded):
                await _idle(source.pool)
                source.pool.shutdown(wait=False)
            await _idle(worker.pool)
        finally:
            worker.close()


async def _next(source: AsyncIterator[T]) -> T:
    return await anext(source, _END)


class _Threaded:
    """A source that may block, read in a thread so that the event loop does not."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="srgan-fast-source")

    def __aiter__(self) -> _Threaded:
        return self

    async def __anext__(self) -> Any:
        frame = await asyncio.get_running_loop().run_in_executor(self.pool, next, self._source, _END)
        if frame is _END:
            raise StopAsyncIteration
        return frame


async def _idle(pool: ThreadPoolExecutor) -> None:
    """Wait, without holding the loop up, until a pool of one thread has done what it is at."""
    await asyncio.get_running_loop().run_in_executor(pool, _nothing)


def _nothing() -> None:
    pass
