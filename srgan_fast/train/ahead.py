"""Windows for the coming steps, cut out of a store by a thread: for pixels that the device cannot hold.

The thread calls nothing of CUDA, which would disturb a capture that runs meanwhile: it fills buffers on the host, and
the training thread sends each on its way one step before it is due, on a stream of its own.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from srgan_fast.kernels.training_crops import cut
from srgan_fast.train.config import CONTEXT, TrainConfig
from srgan_fast.train.store import ImageStore

# Host buffers; all but those on their way are filled ahead.
_BUFFERS = 6

Key = tuple[int, int]  # step, salt
Draws = Callable[[int, int], Tensor]
Windows = tuple[Tensor, Tensor, Tensor | None, Tensor]


class _Layout:
    """Where a step's draws and windows lie in one buffer, so that one copy brings them all."""

    def __init__(self, config: TrainConfig, share: int, pairs: bool) -> None:
        scale = config.generator.scale
        self.context = 0 if pairs else CONTEXT * scale
        self.high = config.crop + 2 * self.context
        self.low = config.crop // scale if pairs else 0
        self.share, self.scale = share, scale
        sizes = [share * 4 * 8, share * 3 * self.high**2, share * 3 * self.low**2]
        self.ends = [sum(sizes[: i + 1]) for i in range(3)]

    def draws(self, buffer: Tensor) -> Tensor:
        return buffer[: self.ends[0]].view(torch.int64).view(self.share, 4)

    def pixels(self, buffer: Tensor) -> Tensor:
        return buffer[self.ends[0] :]

    def table(self, low: bool) -> Tensor:
        """The windows as images, by their first byte in `pixels`."""
        size = self.low if low else self.high
        start = torch.arange(self.share) * 3 * size * size + (self.ends[1] - self.ends[0] if low else 0)
        return torch.stack([start, torch.full_like(start, size), torch.full_like(start, size)], 1)


class _Cutter:
    """Fills buffers; apart from `Ahead`, so that the thread does not keep that alive."""

    def __init__(self, store: ImageStore, layout: _Layout, draws: Draws) -> None:
        self.store, self.layout, self.draws = store, layout, draws

    def fill(self, buffer: Tensor, step: int, salt: int) -> None:
        """Cut what a step draws: each window upright, its turn is made on the device."""
        layout, drawn = self.layout, self.draws(step, salt)
        pixels = layout.pixels(buffer)
        high = pixels[: layout.share * 3 * layout.high**2].view(layout.share, 3, layout.high, layout.high)
        low = pixels[high.numel() :].view(layout.share, 3, layout.low, layout.low)
        factor = layout.scale if layout.low else 1
        for row, (index, y, x, _) in enumerate(drawn.tolist()):
            top, left = y * factor - layout.context, x * factor - layout.context
            high[row] = cut(self.store.image(index), top, left, layout.high)
            if layout.low:
                low[row] = cut(self.store.low(index), y, x, layout.low)
        placed = layout.draws(buffer)
        placed[:, 0] = torch.arange(layout.share)
        placed[:, 1:3] = layout.context
        placed[:, 3] = drawn[:, 3]


@dataclass
class _Shared:
    """What both threads look at, under `changed`."""

    changed: threading.Condition
    free: deque[Tensor]
    filled: deque[tuple[Key, Tensor]]
    working: Key | None = None
    following: Key | None = None
    error: BaseException | None = None
    closed: bool = False


def _work(shared: _Shared, cutter: _Cutter) -> None:
    """The thread: fill free buffers in the order of the steps, until told to stop."""
    while True:
        with shared.changed:
            shared.changed.wait_for(lambda: shared.closed or (shared.following is not None and bool(shared.free)))
            if shared.closed:
                return
            assert shared.following is not None
            key, buffer = shared.following, shared.free.popleft()
            shared.working, shared.following = key, (key[0] + 1, key[1])
        try:
            cutter.fill(buffer, *key)
        except BaseException as error:
            with shared.changed:
                shared.error = error
                shared.changed.notify_all()
            return
        with shared.changed:
            # A change of course in the meantime has taken it off the list.
            if shared.working == key:
                shared.filled.append((key, buffer))
            else:
                shared.free.append(buffer)
            shared.working = None
            shared.changed.notify_all()


def _end(shared: _Shared) -> None:
    with shared.changed:
        shared.closed = True
        shared.changed.notify_all()


class Ahead:
    """The windows of each step in the order of the steps, read ahead; another step than the next starts anew there."""

    def __init__(self, store: ImageStore, config: TrainConfig, device: torch.device, share: int, draws: Draws) -> None:
        self._layout = _Layout(config, share, store.lows is not None)
        cuda = device.type == "cuda"
        buffers = [torch.empty(self._layout.ends[2], dtype=torch.uint8, pin_memory=cuda) for _ in range(_BUFFERS)]
        self._shared = _Shared(threading.Condition(), deque(buffers), deque())
        self._table = self._layout.table(low=False).to(device)
        self._lows = None if store.lows is None else self._layout.table(low=True).to(device)
        self._line = _Line(device, self._layout.ends[2]) if cuda else None
        self._thread = threading.Thread(
            target=_work, args=(self._shared, _Cutter(store, self._layout, draws)), name="windows ahead", daemon=True
        )
        self._thread.start()
        self._finalizer = weakref.finalize(self, _end, self._shared)

    @contextmanager
    def windows(self, step: int, salt: int) -> Iterator[Windows]:
        """The images, tables and draws of a step on the device, for as long as the block runs.

        Raises:  what the thread met when it cut the windows; RuntimeError after `close`
        """
        key = (step, salt)
        if self._line is None:
            buffer = self._take(key)
            try:
                yield self._named(buffer)
            finally:
                self._give_back([buffer])
            return
        if not self._line.brings(key):
            self._line.send(key, self._take(key))
        slot, buffer = self._line.receive(key)
        yield self._named(buffer)
        self._line.done(slot)
        self._give_back(self._line.arrived())
        following = (step + 1, salt)
        with self._shared.changed:
            ready = bool(self._shared.filled) and self._shared.filled[0][0] == following
        if ready and not self._line.brings(following):
            self._line.send(following, self._take(following))

    def _named(self, buffer: Tensor) -> Windows:
        return self._layout.pixels(buffer), self._table, self._lows, self._layout.draws(buffer)

    def _take(self, key: Key) -> Tensor:
        """The filled host buffer of a step; the thread changes course if it is not the next that it gives."""
        shared = self._shared
        with shared.changed:
            while not (shared.error or shared.closed):
                coming = shared.filled[0][0] if shared.filled else shared.working or shared.following
                if coming != key:
                    shared.free.extend(buffer for _, buffer in shared.filled)
                    shared.filled.clear()
                    shared.working, shared.following = None, key
                elif shared.filled:
                    return shared.filled.popleft()[1]
                if self._line is not None and not shared.free and shared.working is None:
                    # The device is as many steps behind as there are buffers.
                    shared.free.extend(self._line.arrived(wait=True))
                shared.changed.notify_all()
                shared.changed.wait()
            if shared.error is not None:
                raise shared.error
        raise RuntimeError("expected batches before close, got a call after it; make another Batches")

    def _give_back(self, buffers: list[Tensor]) -> None:
        with self._shared.changed:
            self._shared.free.extend(buffers)
            self._shared.changed.notify_all()

    def close(self) -> None:
        """End the thread and wait for it."""
        _end(self._shared)
        self._thread.join()


class _Line:
    """Two buffers on the device, each filled on a stream of their own while the step works on the other."""

    def __init__(self, device: torch.device, size: int) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        # What had this memory before may still be at work on it.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        for buffer in self._buffers:
            buffer.record_stream(self._stream)
        self._used = [torch.cuda.Event(), torch.cuda.Event()]  # type: ignore[no-untyped-call]
        self._keys: list[Key | None] = [None, None]
        self._sent: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        self._arrivals: list[torch.cuda.Event | None] = [None, None]
        self._last = 0

    def brings(self, key: Key) -> bool:
        """Whether the windows of a step are there, or on their way."""
        return key in self._keys

    def send(self, key: Key, host: Tensor) -> None:
        """Copy a host buffer into the device buffer that was used before the last."""
        slot = self._last = 1 - self._last
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._used[slot])
            self._buffers[slot].copy_(host, non_blocking=True)
            arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrival.record(self._stream)
        self._keys[slot], self._arrivals[slot] = key, arrival
        self._sent.append((arrival, host))

    def receive(self, key: Key) -> tuple[int, Tensor]:
        """The device buffer of a step and its number; the current stream waits for it, the host does not."""
        slot = self._keys.index(key)
        arrival = self._arrivals[slot]
        assert arrival is not None
        torch.cuda.current_stream(self._device).wait_event(arrival)
        return slot, self._buffers[slot]

    def done(self, slot: int) -> None:
        """The current stream has been given all that reads a buffer."""
        self._used[slot].record(torch.cuda.current_stream(self._device))
        self._keys[slot] = None

    def arrived(self, *, wait: bool = False) -> list[Tensor]:
        """The host buffers that are no longer read; with `wait` one at least, if any is on its way."""
        if wait and self._sent:
            self._sent[0][0].synchronize()
        free = []
        while self._sent and self._sent[0][0].query():  # type: ignore[no-untyped-call]
            free.append(self._sent.popleft()[1])
        return free
