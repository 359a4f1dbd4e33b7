"""What is done to a frame between decoder and encoder: upload, upscale, download, each a stage of the pipeline.

On a GPU each has a stream of its own and copies through a ring of pinned buffers, so that the copies of one frame run
beside the network on another; the colour conversions run there too, which leaves 1.5 bytes a pixel to copy. On a CPU
the same code runs without streams.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srgan_fast.graph import stream_for
from srgan_fast.video.colour import Colour, from_rgb, to_rgb

if TYPE_CHECKING:
    from srgan_fast.video.source import Frame


@dataclass(frozen=True)
class End:
    """Stands in the stream where a segment has had all of its frames, and says what was met in reading them."""

    damaged: int = 0
    missing: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """RGB on the device; valid on other streams once `ready` has come."""

    rgb: Tensor
    pts: int
    ready: Any


@dataclass(frozen=True)
class Planes:
    """Planes on the host, valid until the stage that has them asks for the next."""

    planes: tuple[NDArray[Any], ...]
    pts: int


class _Lane:
    """A stream of a GPU, and what has to be said to others about the work on it; nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._stream = stream_for(device)

    def __call__(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def take(self, picture: Picture) -> Tensor:
        """The pixels of a picture for work on this stream, which waits for them."""
        if self._stream is not None:
            self._stream.wait_event(picture.ready)
            picture.rgb.record_stream(self._stream)
        return picture.rgb

    def mark(self) -> Any:
        """An event behind all that this stream has been given so far."""
        if self._stream is None:
            return None
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # a wait leaves the core to others
        event.record(self._stream)
        return event


def _come(event: Any) -> None:
    if event is not None:
        event.synchronize()


class _Ring:
    """Buffers on the host that are used in turn, pinned where a GPU copies from and to them."""

    def __init__(self, slots: int, pinned: bool) -> None:
        self._pinned = pinned
        self._buffers: list[list[Tensor]] = [[] for _ in range(slots)]
        self._last = -1

    def next(self, like: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> tuple[int, list[Tensor]]:
        """The buffers whose turn it is, and their number; those of another shape are made anew."""
        self._last = (self._last + 1) % len(self._buffers)
        buffers = self._buffers[self._last]
        if [(tuple(each.shape), each.dtype) for each in buffers] != list(like):
            buffers[:] = [torch.empty(shape, dtype=dtype, pin_memory=self._pinned) for shape, dtype in like]
        return self._last, buffers


class Stages:
    """The three stages for one device.

    `upscale` takes [h, w, 3], and [n, h, w, 3] where `batch` is more than 1. `stop` is asked before each frame: when it
    says so, those that have not reached the network are let go. `depth` is that of the pipeline's queues.
    """

    def __init__(
        self,
        upscale: Callable[[Tensor], Tensor],
        device: str,
        colour: Colour,
        *,
        batch: int = 1,
        depth: int = 2,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._upscale, self._colour, self._batch, self._stop = upscale, colour, batch, stop
        self._device = torch.device(device)
        self._up, self._middle, self._down = (_Lane(self._device) for _ in range(3))
        # One for the queue's every place, one where it is filled, one where it is emptied.
        slots, cuda = depth + 2, self._device.type == "cuda"
        self._sources, self._results = _Ring(slots, cuda), _Ring(slots, cuda)
        self._sent: list[Any] = [None] * slots
        self._under_way: deque[Any] = deque()

    def upload(self, items: Iterator[Any]) -> Iterator[Any]:
        """Frames -> pictures on the device."""
        for item in items:
            yield item if isinstance(item, End) else self._picture(item)

    def upscale(self, items: Iterator[Any]) -> Iterator[Any]:
        """Pictures -> larger pictures."""
        waiting: list[Picture] = []
        for item in items:
            if isinstance(item, End):
                # Batches never span segments: what is in one depends on no run that came before.
                for picture in waiting:
                    yield from self._larger([picture])
                waiting = []
                yield item
            elif self._stop():
                return
            else:
                waiting.append(item)
                if len(waiting) == self._batch:
                    yield from self._larger(waiting)
                    waiting = []

    def download(self, items: Iterator[Any]) -> Iterator[Any]:
        """Pictures -> planes on the host."""
        for item in items:
            yield item if isinstance(item, End) else self._planes(item)

    def _picture(self, frame: Frame) -> Picture:
        planes = [np.asarray(plane) for plane in frame.planes]
        shapes = [(plane.shape, torch.uint8 if plane.dtype == np.uint8 else torch.uint16) for plane in planes]
        slot, hosts = self._sources.next(shapes)
        _come(self._sent[slot])
        with self._up():
            for host, plane in zip(hosts, planes, strict=True):
                np.copyto(host.numpy(), plane)
            rgb = to_rgb([host.to(self._device, non_blocking=True) for host in hosts], frame.colour)
            self._sent[slot] = self._up.mark()
        return Picture(rgb, frame.pts, self._sent[slot])

    def _larger(self, pictures: list[Picture]) -> Iterator[Picture]:
        with self._middle():
            lr = [self._middle.take(picture) for picture in pictures]
            sr = list(self._upscale(torch.stack(lr))) if len(lr) > 1 else [self._upscale(lr[0])]
            event = self._middle.mark()
        self._under_way.append(event)
        # One is at work and one behind it: a GPU never waits for Python, and Python runs no further ahead.
        if len(self._under_way) > 1:
            _come(self._under_way.popleft())
        for picture, rgb in zip(pictures, sr, strict=True):
            yield Picture(rgb, picture.pts, event)

    def _planes(self, picture: Picture) -> Planes:
        with self._down():
            planes = from_rgb(self._down.take(picture), self._colour)
            _, hosts = self._results.next([(tuple(plane.shape), plane.dtype) for plane in planes])
            for host, plane in zip(hosts, planes, strict=True):
                host.copy_(plane, non_blocking=True)
            event = self._down.mark()
        _come(event)
        return Planes(tuple(host.numpy() for host in hosts), picture.pts)
