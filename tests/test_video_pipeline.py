"""The chain of threads and the stages in it: order, overlap, back-pressure, ends of every kind, and no thread left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from srgan_fast.video.colour import Colour, from_rgb, to_rgb
from srgan_fast.video.pipeline import THREAD_NAME, Pipeline
from srgan_fast.video.source import Frame
from srgan_fast.video.stages import End, Picture, Planes, Stages


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)] == []


def slow(seconds: float) -> Callable[[Iterator[int]], Iterator[int]]:
    def work(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            time.sleep(seconds)
            yield item

    return work


def test_stages_overlap_and_keep_the_order() -> None:
    """The slowest stage alone decides: the others work meanwhile, and the queues cost next to nothing."""
    shares = []
    for _ in range(3):  # other work on the machine may be in the way once
        stages = [("short", slow(0.004)), ("long", slow(0.02)), ("last", slow(0.01))]
        start = time.perf_counter()
        with Pipeline(("source", range(60)), stages) as chain:
            assert list(chain) == list(range(60))
        busy_s = chain.busy_s()
        shares.append(busy_s["long"] / (time.perf_counter() - start))
        assert busy_s["short"] < busy_s["last"] < busy_s["long"]
        assert busy_s["long"] >= 60 * 0.02
    assert max(shares) >= 0.95


def test_a_queue_holds_no_more_than_its_depth() -> None:
    pulled: list[int] = []

    def source() -> Iterator[int]:
        for number in range(1000):
            pulled.append(number)
            yield number

    with Pipeline(("source", source()), [("pass", lambda items: items)], depth=3) as chain:
        assert next(iter(chain)) == 0
        time.sleep(0.2)
        # Taken, in two queues, in the hands of two stages.
        assert len(pulled) <= 1 + 2 * 3 + 2


@pytest.mark.parametrize("failing", ["source", "middle", "last", "reader"])
def test_the_first_error_ends_all_and_is_raised_here(failing: str) -> None:
    closed: list[str] = []

    def stage(name: str) -> Callable[[Iterator[int]], Iterator[int]]:
        def work(items: Iterator[int]) -> Iterator[int]:
            try:
                for item in items:
                    if name == failing and item == 5:
                        raise OSError(f"in {name}")
                    yield item
            finally:
                closed.append(name)

        return work

    def read() -> None:
        numbers = stage("source")(iter(range(10**9)))
        with Pipeline(("source", numbers), [("middle", stage("middle")), ("last", stage("last"))]) as chain:
            for item in chain:
                if failing == "reader" and item == 5:
                    raise OSError("in reader")

    start = time.perf_counter()
    with pytest.raises(OSError, match=f"in {failing}"):
        read()
    assert time.perf_counter() - start < 1
    assert sorted(closed) == ["last", "middle", "source"]


def test_a_stage_that_stops_reading_ends_those_before_it() -> None:
    def first_ten(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            if item == 10:
                return
            yield item

    with Pipeline(("source", iter(range(10**9))), [("some", first_ten), ("rest", slow(0))]) as chain:
        assert list(chain) == list(range(10))


COLOUR = Colour("bt709", full=False, depth=8, subsampling="420")


def frame(rng: np.random.Generator, pts: int, height: int = 6, width: int = 8) -> Frame:
    sizes = ((height, width), (height // 2, width // 2), (height // 2, width // 2))
    return Frame(tuple(rng.integers(16, 236, size, dtype=np.uint8) for size in sizes), pts, COLOUR)


def through(stages: Stages, items: list[Any]) -> list[Any]:
    """What the three stages make of frames, planes copied while they are valid."""
    chain = [("upload", stages.upload), ("upscale", stages.upscale), ("download", stages.download)]
    with Pipeline(("decode", items), chain) as pipeline:
        return [
            Planes(tuple(plane.copy() for plane in item.planes), item.pts) if isinstance(item, Planes) else item
            for item in pipeline
        ]


def twice(frames: torch.Tensor) -> torch.Tensor:
    return frames.repeat_interleave(2, -3).repeat_interleave(2, -2)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_frames_through_the_stages_are_those_without_them(batch: int, device: str) -> None:
    """More frames than any ring has places, of two sizes; a batch ends where its segment does."""
    rng = np.random.default_rng(0)
    items: list[Any] = [*(frame(rng, i) for i in range(10)), End()]
    items += [*(frame(rng, i, 10, 4) for i in range(10, 14)), End()]
    sizes: list[int] = []

    def upscale(frames: torch.Tensor) -> torch.Tensor:
        sizes.append(len(frames) if frames.ndim == 4 else 1)
        return twice(frames)

    done = through(Stages(upscale, device, COLOUR, batch=batch), items)
    assert sizes == ([1] * 14 if batch == 1 else [3, 3, 3, 1, 3, 1])
    assert len(done) == len(items)
    for item, result in zip(items, done, strict=True):
        if isinstance(item, End):
            assert result is item
            continue
        wanted = from_rgb(twice(to_rgb([torch.from_numpy(plane) for plane in item.planes], COLOUR)), COLOUR)
        assert result.pts == item.pts
        for plane, want in zip(result.planes, wanted, strict=True):
            np.testing.assert_allclose(plane, want.numpy(), atol=0 if device == "cpu" else 1)


def test_a_stop_lets_go_what_has_not_reached_the_network() -> None:
    rng = np.random.default_rng(0)
    asked = iter([False] * 4 + [True] * 100)
    stages = Stages(twice, "cpu", COLOUR, stop=lambda: next(asked))
    done = through(stages, [frame(rng, i) for i in range(50)] + [End()])
    assert [item.pts for item in done] == [0, 1, 2, 3]


@pytest.mark.gpu
def test_memory_of_the_gpu_is_flat() -> None:
    rng = np.random.default_rng(0)
    stages = Stages(twice, "cuda", COLOUR)
    frames = [frame(rng, i, 270, 480) for i in range(8)]
    through(stages, frames * 2)
    torch.cuda.reset_peak_memory_stats()
    through(stages, frames * 4)
    before = torch.cuda.max_memory_allocated()
    through(stages, frames * 125)
    assert torch.cuda.max_memory_allocated() - before <= 1 << 20


@pytest.mark.gpu
def test_the_stages_of_a_gpu_overlap() -> None:
    """While the network is at work on one frame, others are copied: in all, little more than the network's time."""
    rng = np.random.default_rng(0)
    matrix = torch.randn(4096, 4096, device="cuda")

    def upscale(frames: torch.Tensor) -> torch.Tensor:
        for _ in range(20):
            torch.mm(matrix, matrix)
        return twice(frames)

    items = [frame(rng, i, 540, 960) for i in range(50)]
    through(Stages(upscale, "cuda", COLOUR), items[:4])
    picture = Picture(torch.zeros(540, 960, 3, dtype=torch.uint8, device="cuda"), 0, None)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in items:
        upscale(picture.rgb)
    torch.cuda.synchronize()
    alone = time.perf_counter() - start
    start = time.perf_counter()
    through(Stages(upscale, "cuda", COLOUR), items)
    assert alone / (time.perf_counter() - start) >= 0.8
