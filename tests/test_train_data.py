"""Training data: draws of old recipes, one batch however the pixels are held."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training import config_of, noise

from srgan_fast.errors import InputError, UsageError
from srgan_fast.kernels.training_crops.windows import gathered, sliced
from srgan_fast.resize import gaussian_down, imresize_down
from srgan_fast.train import ahead
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.data import Batches
from srgan_fast.train.store import ImageStore

Run = Callable[..., tuple[int, str, str]]


def literal_batch(
    images: list[Tensor], config: TrainConfig, step: int, lows: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """A batch crop by crop, as the first recipes were trained: nothing here may ever change."""
    scale = config.generator.scale
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    rounds = -(-config.batch // len(images))
    order = torch.cat([torch.randperm(len(images), generator=rng) for _ in range(rounds)])[: config.batch]
    lr, hr = [], []
    for index in order.tolist():
        draw = torch.rand(3, generator=rng)
        small = images[index] if lows is None else lows[index]
        size = config.crop if lows is None else config.crop // scale
        y = int(draw[0] * (small.shape[1] - size + 1))
        x = int(draw[1] * (small.shape[2] - size + 1))

        def turned(crop: Tensor, turn: int = int(draw[2] * 8)) -> Tensor:
            crop = crop.rot90(turn % 4, (1, 2))
            return crop.flip(2) if turn >= 4 else crop

        if lows is not None:
            lr.append(turned(small[:, y : y + size, x : x + size]))
            y, x = y * scale, x * scale
            hr.append(turned(images[index][:, y : y + config.crop, x : x + config.crop]))
            continue
        margin = 2 * scale
        padded = F.pad(images[index][None].float(), (margin,) * 4, mode="replicate")[0].to(torch.uint8)
        wide = turned(padded[:, y : y + config.crop + 2 * margin, x : x + config.crop + 2 * margin])
        if config.degradation == "gaussian":
            lr.append(gaussian_down(wide, scale, config.blur_sigma)[:, 2:-2, 2:-2])
        else:
            lr.append(imresize_down(wide, scale)[:, 2:-2, 2:-2])
        hr.append(wide[:, margin:-margin, margin:-margin])
    return torch.stack(lr) / 255.0, torch.stack(hr) / 127.5 - 1.0


def digest_of(*tensors: Tensor) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


SIZES = ((40, 61), (32, 32), (57, 33))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        config_of(2),
        config_of(4),
        config_of(8),
        config_of(4, seed=2**40 - 1),
        config_of(4, "gaussian"),
        config_of(4, batch=1),
    ],
    ids=lambda config: f"x{config.generator.scale}-{config.degradation}-{config.batch}-{config.seed}",
)
def test_batches_are_those_of_the_first_recipes(config: TrainConfig, resident: bool) -> None:
    images = noise(*SIZES)
    batches = Batches(ImageStore.of(images), config, resident=resident)
    for step in (0, 1, 2, 59, 7):
        for got, wanted in zip(batches(step), literal_batch(images, config, step), strict=True):
            assert torch.equal(got, wanted)
    batches.close()


@pytest.mark.parametrize("resident", [True, False])
def test_pairs_are_those_of_the_first_recipes(resident: bool) -> None:
    config = config_of(2, "pairs")
    lows = noise((16, 19), (30, 17), seed=1)
    images = noise((32, 38), (60, 34))
    batches = Batches(ImageStore.of(images, lows), config, resident=resident)
    for step in range(6):
        for got, wanted in zip(batches(step), literal_batch(images, config, step, lows), strict=True):
            assert torch.equal(got, wanted)
    batches.close()


def test_views_and_a_gather_cut_alike() -> None:
    """What a CPU and a GPU do to the same draws."""
    images = noise(*SIZES)
    store, config = ImageStore.of(images), config_of(4)
    for step in range(4):
        draws = Batches(store, config).draws(step)
        for reach in (0, 6, 8):
            both = (cut(store.pixels, store.table, draws, 32, reach) for cut in (sliced, gathered))
            assert torch.equal(*both)


def test_every_rank_takes_its_rows() -> None:
    store, config = ImageStore.of(noise(*SIZES)), config_of(4, batch=6)
    whole = Batches(store, config)(3)
    for resident in (True, False):
        parts = [Batches(store, config, rank=rank, ranks=3, resident=resident) for rank in range(3)]
        for whole_part, *rows in zip(whole, *(part(3) for part in parts), strict=True):
            assert torch.equal(torch.cat(rows), whole_part)
        for part in parts:
            part.close()
    with pytest.raises(UsageError, match=r"ranks that divide a batch of 6, got rank 0 of 4"):
        Batches(store, config, ranks=4)


@pytest.mark.parametrize("resident", [True, False])
def test_a_salt_draws_anew(resident: bool) -> None:
    store, config = ImageStore.of(noise(*SIZES)), config_of(4)
    batches = Batches(store, config, resident=resident)
    seen = {digest_of(*batches(step, salt)) for step in range(3) for salt in range(4)}
    assert len(seen) == 12
    assert digest_of(*batches(1, 3)) == digest_of(*Batches(store, config)(1, 3))
    batches.close()


def test_steps_out_of_order_are_read_ahead_anew() -> None:
    store, config = ImageStore.of(noise(*SIZES)), config_of(4)
    wanted, batches = Batches(store, config), Batches(store, config, resident=False)
    calls = [(0, 0), (1, 0), (2, 0), (2, 0), (9, 0), (10, 0), (3, 0), (3, 1), (4, 1), (4, 0), (5, 0), (5, 0), (0, 2)]
    for call in calls * 3:
        assert digest_of(*batches(*call)) == digest_of(*wanted(*call)), call
    batches.close()


def named_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "windows ahead"]


def test_the_thread_ends() -> None:
    before = named_threads()
    store, config = ImageStore.of(noise(*SIZES)), config_of(4)
    batches = Batches(store, config, resident=False)
    batches(0)
    assert len(named_threads()) == len(before) + 1
    batches.close()
    batches.close()
    assert named_threads() == before
    with pytest.raises(RuntimeError, match="after it"):
        batches(1)
    forgotten = Batches(store, config, resident=False)
    forgotten(0)
    (thread,) = set(named_threads()) - set(before)
    del forgotten
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_what_the_thread_meets_comes_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    before = named_threads()
    store = ImageStore.of(noise(*SIZES))
    batches = Batches(store, config_of(4), resident=False)
    batches(0)
    monkeypatch.setattr(store, "image", lambda index: (_ for _ in ()).throw(OSError(5, "Input/output error")))

    def all_steps() -> None:
        for step in range(1, 20):
            batches(step)

    with pytest.raises(OSError, match="Input/output"):
        all_steps()
    batches.close()
    assert named_threads() == before


class Stream:
    """Stands for a stream of CUDA: counts what it is told to wait for."""

    def __init__(self, device: object = None) -> None:
        self.waits: list[object] = []

    def wait_stream(self, other: Stream) -> None:
        self.waits.append(other)

    def wait_event(self, event: Event) -> None:
        self.waits.append(event)


class Event:
    """Stands for an event: done when a test says so."""

    behind = False

    def __init__(self) -> None:
        self.recorded: Stream | None = None
        self.waited = False

    def record(self, stream: Stream) -> None:
        self.recorded = stream

    def query(self) -> bool:
        return self.waited or not self.behind

    def synchronize(self) -> None:
        self.waited = True


@pytest.mark.parametrize("behind", [False, True])
def test_the_line_to_the_device(behind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffers and events of a GPU that keeps up, and of one that is always as far behind as it can be."""
    current = Stream()
    monkeypatch.setattr(Event, "behind", behind)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    store, config = ImageStore.of(noise(*SIZES)), config_of(4)
    wanted, batches = Batches(store, config), Batches(store, config, resident=False)
    assert batches._ahead is not None
    line = batches._ahead._line = ahead._Line(torch.device("cpu"), batches._ahead._layout.ends[2])
    for call in [(step, 0) for step in range(20)] + [(7, 0), (7, 1), (8, 1), (9, 1)]:
        assert digest_of(*batches(*call)) == digest_of(*wanted(*call)), call
    assert all(event.recorded is current for event in line._used)
    assert all(event.recorded is line._stream for event in line._arrivals)
    assert current.waits, "the step waited for no copy"
    assert {id(event) for event in line._used} <= {id(event) for event in line._stream.waits}
    batches.close()


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_batches_on_a_gpu_are_those_of_a_cpu(scale: int, resident: bool) -> None:
    store, config = ImageStore.of(noise(*SIZES)), config_of(scale, batch=16)
    here, there = Batches(store, config), Batches(store, config, "cuda", resident=resident)
    for call in [(0, 0), (1, 0), (2, 0), (9, 0), (9, 1), (10, 1)]:
        for got, wanted in zip(there(*call), here(*call), strict=True):
            assert torch.equal(got.cpu(), wanted)
    there.close()


def test_stores_that_a_config_cannot_use() -> None:
    lows, images = noise((16, 16)), noise((32, 32))
    with pytest.raises(UsageError, match="degradation pairs and only there, got pairs with bicubic"):
        Batches(ImageStore.of(images, lows), config_of(2))
    with pytest.raises(UsageError, match="got none with pairs"):
        Batches(ImageStore.of(images), config_of(2, "pairs"))
    with pytest.raises(UsageError, match="pairs of scale 4, got 32x32 over 16x16"):
        Batches(ImageStore.of(images, lows), config_of(4, "pairs"))
    with pytest.raises(UsageError, match="at least 64 pixels a side, got 32"):
        Batches(ImageStore.of(images), config_of(2, crop=64))
    with pytest.raises(InputError, match="at least one training image"):
        Batches(ImageStore.of([]), config_of(2))
