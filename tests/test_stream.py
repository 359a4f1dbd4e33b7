"""Streams: order, back-pressure, errors and ends; frames of any library; no thread is left."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from models import model_of

from srgan_fast import Upscaler
from srgan_fast.errors import BackendUnavailable, ShapeError, UsageError
from srgan_fast.model import CompactConfig, SRVGGNetCompact
from srgan_fast.reuse import Reuse


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    network = SRVGGNetCompact(CompactConfig(blocks=1, width=4))
    return Upscaler(model_of(network, tmp_path_factory.mktemp("model")), backend="eager", device="cpu")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [each.name for each in threading.enumerate() if each.name.startswith("srgan-fast")]


def frames(count: int, *, pulled: list[int] | None = None, fail_at: int | None = None) -> Iterator[np.ndarray]:
    for i in range(count):
        if i == fail_at:
            raise OSError("the camera is gone")
        if pulled is not None:
            pulled.append(i)
        yield np.random.default_rng(i // 2).integers(0, 256, (9, 11, 3), dtype=np.uint8)


async def slowly(count: int) -> AsyncIterator[np.ndarray]:
    for frame in frames(count):
        await asyncio.sleep(0)
        yield frame


def every(results: Any) -> list[np.ndarray]:
    async def collect() -> list[np.ndarray]:
        return [each async for each in results()]

    return asyncio.run(collect())


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("reuse", ["auto", "off"])
def test_results_in_order(upscaler: Upscaler, ahead: int, reuse: Any) -> None:
    want = [upscaler(frame) for frame in frames(6)]
    ways = [
        list(upscaler.stream(frames(6), ahead=ahead, reuse=reuse)),
        every(lambda: upscaler.astream(slowly(6), ahead=ahead, reuse=reuse)),
        every(lambda: upscaler.astream(frames(6), ahead=ahead, reuse=reuse)),
    ]
    for got in ways:
        assert all(isinstance(each, np.ndarray) for each in got)
        np.testing.assert_array_equal(got, want)


def test_what_a_call_takes_a_stream_takes(upscaler: Upscaler) -> None:
    for frame, choices in (
        (torch.rand(3, 8, 7), {}),
        (torch.randint(0, 256, (2, 8, 7, 3), dtype=torch.uint8), {}),
        (torch.randint(0, 256, (3, 8, 7), dtype=torch.uint8), {"layout": "CHW"}),
        (torch.randint(0, 256, (8, 7, 3), dtype=torch.uint8), {"color": "bgr"}),
    ):
        for reuse in ("auto", "off", Reuse(upscaler, shared=True)):
            for got in upscaler.stream([frame, frame], reuse=reuse, **choices):  # type: ignore[call-overload]
                assert torch.equal(got, upscaler(frame, **choices))  # type: ignore[arg-type]


def test_a_source_may_fill_one_buffer_again_and_again(upscaler: Upscaler) -> None:
    buffer = np.empty((9, 11, 3), np.uint8)

    def filled() -> Iterator[np.ndarray]:
        for frame in frames(5):
            buffer[:] = frame
            yield buffer

    np.testing.assert_array_equal(list(upscaler.stream(filled(), ahead=3)), [upscaler(each) for each in frames(5)])


def test_no_more_is_taken_than_is_asked_for(upscaler: Upscaler) -> None:
    pulled: list[int] = []
    results = upscaler.stream(frames(50, pulled=pulled), ahead=3)
    assert pulled == []
    for done in range(4):
        next(results)
        time.sleep(0.01)
        assert len(pulled) <= done + 3
    results.close()
    assert len(pulled) <= 6
    with pytest.raises(StopIteration):
        next(results)


def test_leaving_the_loop_ends_the_thread(upscaler: Upscaler) -> None:
    for i, _ in enumerate(upscaler.stream(frames(50))):
        if i == 2:
            break

    async def leave() -> None:
        async with contextlib.aclosing(upscaler.astream(slowly(50))) as results:
            async for _ in results:
                break

    asyncio.run(leave())


@pytest.mark.parametrize("ahead", [1, 4])
def test_errors_come_in_order(upscaler: Upscaler, ahead: int) -> None:
    got: list[np.ndarray] = []

    def collect(source: Any) -> None:
        for result in upscaler.stream(source, ahead=ahead):
            got.append(result)

    with pytest.raises(OSError, match="camera"):
        collect(frames(9, fail_at=3))
    assert len(got) == 3

    async def failing() -> None:
        async for result in upscaler.astream(frames(9, fail_at=3), ahead=ahead):
            got.append(result)

    with pytest.raises(OSError, match="camera"):
        asyncio.run(failing())
    assert len(got) == 6
    with pytest.raises(ShapeError):
        collect([*frames(2), np.zeros((4, 4), np.uint8), *frames(2)])
    assert len(got) == 8


def test_wrong_choices_are_refused_at_once(upscaler: Upscaler) -> None:
    for wrong in ({"ahead": 0}, {"reuse": "maybe"}):
        with pytest.raises(UsageError):
            upscaler.stream([], **wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            upscaler.astream([], **wrong)  # type: ignore[arg-type]


class Slow:
    """An upscaler whose frames take a while, as far as a stream can see."""

    device, radius, scale, backend_name, precision = "cpu", 0, 1, "slow", "fp32"

    def __init__(self, seconds: float) -> None:
        self.seconds, self.done = seconds, 0

    def __call__(self, frame: torch.Tensor, *, layout: str) -> torch.Tensor:
        time.sleep(self.seconds)
        self.done += 1
        return frame.clone()

    upscaled = Upscaler.upscaled
    stream, astream = Upscaler.stream, Upscaler.astream


def test_the_event_loop_is_never_held_up() -> None:
    """By frames that take long, a source that blocks, and a task that is cancelled between the two."""
    slow: Any = Slow(0.15)
    stalls = []

    def blocking() -> Iterator[np.ndarray]:
        for frame in frames(100):
            time.sleep(0.1)
            yield frame

    async def beat() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.005)
            stalls.append(time.perf_counter() - start)

    async def work() -> None:
        async for _ in slow.astream(blocking()):
            pass

    async def main() -> None:
        heart = asyncio.create_task(beat())
        task = asyncio.create_task(work())
        await asyncio.sleep(0.5)
        task.cancel()
        start = time.perf_counter()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.perf_counter() - start < 1.5
        assert not [each.name for each in threading.enumerate() if each.name.startswith("srgan-fast")]
        heart.cancel()

    asyncio.run(main())
    # The two threads sleep for 0.1 s and more at a time: on a loaded machine a few beats are late, not one in ten.
    assert sorted(stalls)[len(stalls) * 9 // 10] < 0.09
    assert 0 < slow.done < 6


def test_a_result_does_not_wait_for_a_later_frame(upscaler: Upscaler) -> None:
    """As where frames come in as results go out: `astream` hands a result over as soon as it is there."""

    async def talk() -> int:
        answered = asyncio.Event()
        answered.set()

        async def asked() -> AsyncIterator[np.ndarray]:
            for frame in frames(3):
                await answered.wait()
                answered.clear()
                yield frame

        count = 0
        async for _ in upscaler.astream(asked(), ahead=4):
            count += 1
            answered.set()
        return count

    assert asyncio.run(asyncio.wait_for(talk(), 60)) == 3


class Exported:
    """An array of a library that has DLPack, and with `home` the array API."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **choices: Any) -> Any:
        return self.array.__dlpack__(**choices)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class Refusing(Exported):
    def __dlpack__(self, **choices: Any) -> Any:
        raise BufferError("not on this device")


class Standard(Exported):
    def __array_namespace__(self) -> Any:
        class Namespace:
            from_dlpack = staticmethod(lambda tensor: Standard(np.from_dlpack(tensor)))

        return Namespace


def test_frames_of_other_libraries(upscaler: Upscaler) -> None:
    frame = next(frames(1))
    want = upscaler(frame)
    tensor = upscaler(Exported(frame))
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor, want)
    same = upscaler(Standard(frame))
    assert isinstance(same, Standard)
    assert np.array_equal(same.array, want)
    assert [type(each) for each in upscaler.stream([Standard(frame)])] == [Standard]
    with pytest.raises(ShapeError, match="Refusing by DLPack: not on this device"):
        upscaler(Refusing(frame))


class OnGpu:
    __cuda_array_interface__ = {"shape": (4, 5, 3), "typestr": "|u1", "data": (0, False), "version": 3, "stream": 7}  # noqa: RUF012


def test_frames_on_a_gpu_that_torch_does_not_see(upscaler: Upscaler, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match="OnGpu lies on a GPU"):
        upscaler(OnGpu())


def test_a_gpu_waits_for_the_stream_that_fills_the_frames(upscaler: Upscaler, monkeypatch: Any) -> None:
    waited = []
    taken = torch.zeros(4, 5, 3, dtype=torch.uint8)

    class Current:
        def wait_stream(self, other: Any) -> None:
            waited.append(other)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", Current)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda pointer: pointer)
    monkeypatch.setattr(torch, "as_tensor", lambda frames, device: taken)
    assert torch.equal(upscaler(OnGpu()), upscaler(taken))  # type: ignore[arg-type]
    assert waited == [7]


@pytest.mark.gpu
def test_frames_stay_on_the_gpu(upscaler: Upscaler) -> None:
    on_gpu = Upscaler(upscaler.model, device="cuda")
    frame = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, device="cuda")

    class Interface:
        __cuda_array_interface__ = frame.__cuda_array_interface__

    want = on_gpu(frame)
    assert want.is_cuda
    assert torch.equal(on_gpu(Interface()), want)  # type: ignore[arg-type]
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for got in on_gpu.stream([frame, frame.clone()]):
            assert torch.equal(got, want)
