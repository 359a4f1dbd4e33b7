"""Training data: draws of old recipes, one batch however the pixels are held, packs that are whole or refused."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import os
import re
import signal
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.errors import InputError, UsageError
from srgan_fast.kernels.training_crops.windows import gathered, sliced
from srgan_fast.model import GeneratorConfig
from srgan_fast.resize import gaussian_down, imresize_down
from srgan_fast.train import ahead
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.data import Batches
from srgan_fast.train.store import ImageStore, open_pack, read_images, read_pairs, write_pack

Run = Callable[..., tuple[int, str, str]]

TINY = TrainConfig(generator=GeneratorConfig(blocks=1, width=4), crop=32, batch=5, steps=60, precision="fp32")


def noise(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def config_of(scale: int, degradation: str = "bicubic", **changes: int) -> TrainConfig:
    shape = GeneratorConfig(scale=scale, blocks=1, width=4)
    return dataclasses.replace(TINY, generator=shape, degradation=degradation, **changes)


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


# ---- packs


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image in enumerate(noise((48, 60), (47, 33), (32, 32))):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    Image.new("RGB", (20, 90)).save(folder / "narrow.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nonsense")
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for kind, factor in (("high", 2), ("low", 1)):
        (tmp_path / "pairs" / "train" / kind).mkdir(parents=True)
        for index, image in enumerate(noise((20 * factor, 17 * factor), (16 * factor, 19 * factor), seed=factor)):
            path = tmp_path / "pairs" / "train" / kind / f"{index}.png"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    Image.new("RGB", (48, 40)).save(tmp_path / "pairs" / "train" / "high" / "alone.png")
    return tmp_path / "pairs"


def same(one: ImageStore, other: ImageStore) -> bool:
    return all(torch.equal(one.image(i), other.image(i)) for i in range(len(one))) and len(one) == len(other)


def test_a_folder_is_read_by_its_rules(photos: Path) -> None:
    store = read_images(photos, 32)
    assert [tuple(store.image(i).shape) for i in range(3)] == [(3, 48, 60), (3, 47, 33), (3, 32, 32)]
    assert {skipped.path.name for skipped in store.skipped} == {"narrow.png", "broken.png"}
    total = hashlib.sha256()
    for index in range(3):
        total.update(repr(tuple(store.image(index).shape)).encode())
        total.update(np.array(Image.open(photos / f"{index}.png")).transpose(2, 0, 1).tobytes())
    assert store.digest() == total.hexdigest()


def test_a_folder_without_an_image_that_does_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 90)).save(tmp_path / "narrow.png")
    with pytest.raises(InputError, match=r"got none \(1 skipped: narrow.png: 20x90 is smaller than a 32 crop\); add"):
        read_images(tmp_path, 32)
    # By its permissions alone the test would show a superuser every folder.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"cannot read .*; check its permissions"):
        read_images(tmp_path, 32)


def test_a_pack_is_the_folder(photos: Path, tmp_path: Path, run: Run) -> None:
    target = tmp_path / "photos.pack"
    code, out, err = run("pack", photos, target, "--smallest", 32)
    assert (code, err) == (0, "")
    assert "skipped narrow.png: 20x90 is smaller than a 32 crop" in out
    assert "3 images, 2 skipped" in out
    folder, packed = read_images(photos, 32), open_pack(target, 32)
    assert same(folder, packed)
    assert packed.digest() == packed.measured_digest() == folder.digest()
    assert folder.digest()[:16] in out
    assert run("pack", "--verify", target) == (0, f"{target}: ok, 3 images (digest {folder.digest()[:16]})\n", "")
    for one, other in zip(Batches(folder, config_of(4))(5), Batches(packed, config_of(4))(5), strict=True):
        assert torch.equal(one, other)
    # Of a larger crop: those that are left, and another digest.
    larger = open_pack(target, 33)
    assert len(larger) == 2
    assert [skipped.reason for skipped in larger.skipped] == ["image 2: 32x32 is smaller than a 33 crop"]
    assert larger.digest() != packed.digest()
    with pytest.raises(InputError, match="at least 100x100"):
        open_pack(target, 100)


def test_a_pack_of_pairs(pairs: Path, tmp_path: Path, run: Run) -> None:
    (pairs / "val").mkdir()
    target = tmp_path / "pairs.pack"
    code, out, err = run("pack", pairs, target, "--smallest", 32)
    assert (code, err) == (0, "")
    assert "val is not packed: give it to training as --validation" in out
    assert "2 pairs of scale 2, 1 skipped" in out
    folder, packed = read_pairs(pairs / "train", 2, 32), open_pack(target)
    assert same(folder, packed)
    assert all(torch.equal(folder.low(i), packed.low(i)) for i in range(2))
    assert packed.digest() == packed.measured_digest() == folder.digest()
    with pytest.raises(UsageError, match="expected a store of pairs"):
        read_images(pairs / "train" / "low", 1).low(0)


def test_a_pack_is_mapped_and_not_read(tmp_path: Path) -> None:
    """63 MB of which opening, and a batch, touch a few pages."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc here")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    path = tmp_path / "large.pack"
    image = torch.zeros(3, 1024, 1024, dtype=torch.uint8)
    write_pack(path, ((image, None) for _ in range(20)))
    before = resident()
    store = open_pack(path)
    store.digest()
    assert resident() - before < 8e6
    Batches(store, config_of(4))(0)
    assert resident() - before < 20e6
    store.pixels.sum()
    assert resident() - before > 50e6


def test_writing_a_pack_takes_the_memory_of_one_picture(tmp_path: Path) -> None:
    image = torch.zeros(3, 512, 512, dtype=torch.uint8)
    tracemalloc.start()
    write_pack(tmp_path / "a.pack", ((image, image[:, ::2, ::2]) for _ in range(40)), 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * image.numel()


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def raised(error: Exception) -> None:
    raise error


def test_damaged_and_foreign_packs(
    photos: Path, tmp_path: Path, run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "photos.pack"
    assert run("pack", photos, target, "--smallest", 32)[0] == 0
    whole = target.read_bytes()
    for name, data, reason in (
        ("cut", whole[:-1], "incomplete|buffer|not fully"),
        ("short", whole[:500], "header"),
        ("longer", whole + b"x", "incomplete|buffer|not fully"),
        ("empty", b"", "header|empty"),
        ("photo", (photos / "0.png").read_bytes(), "header"),
        ("weights", tiny.read_bytes(), "its format is 'not said'"),
        ("table", whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:], "its table"),
    ):
        path = tmp_path / f"{name}.pack"
        path.write_bytes(data)
        code, out, err = run("pack", "--verify", path)
        assert (code, out) == (2, ""), name
        assert re.fullmatch(rf"srgan-fast: expected a pack .*{path} \(.*(?i:{reason}).*\); make it again .*\n", err), (
            err
        )
    damage(target, 2000)
    assert len(open_pack(target)) == 3
    code, _, err = run("pack", "--verify", target)
    assert (code, "its pixels do not match its digest" in err) == (2, True)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *_: raised(PermissionError(13, "Permission denied")))
        with pytest.raises(InputError, match=f"cannot read {target}: Permission denied; check its permissions"):
            open_pack(target)
    with pytest.raises(UsageError, match="name a file that srgan-fast pack wrote"):
        open_pack(tmp_path / "nowhere.pack")


def test_packs_that_cannot_be_made(photos: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty").mkdir()
    there = tmp_path / "there.pack"
    there.write_bytes(b"mine")
    new = tmp_path / "new.pack"
    for arguments, code, said in (
        ((tmp_path / "empty", new), 2, "expected images of at least 96x96"),
        ((photos, there), 2, "exists; name another, or add --overwrite"),
        ((photos, tmp_path / "photos.tar"), 2, "called *.pack"),
        ((photos, tmp_path / "nowhere" / "a.pack"), 4, "folder that can be written"),
        ((photos / "0.png", new), 2, "got a file"),
        ((tmp_path / "nowhere", new), 2, "name an existing folder"),
        ((photos,), 2, "expected a .pack file to write"),
        ((photos, new, "--verify"), 2, "expected one pack"),
        ((photos, new, "--pairs"), 2, "found no high"),
        ((photos, new, "--smallest", 0), 2, "at least 1"),
    ):
        got, _, err = run("pack", *arguments)
        assert got == code, arguments
        assert said in err
        assert err.count("\n") == 1
    assert there.read_bytes() == b"mine"
    assert run("pack", photos, there, "--overwrite", "--smallest", 32)[0] == 0
    assert len(open_pack(there)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "photos", "there.pack"]


def test_a_full_disk_and_ctrl_c_leave_nothing(
    photos: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new.pack"
    if Path("/dev/full").exists():
        target.symlink_to("/dev/full")
        code, _, err = run("pack", photos, target, "--overwrite", "--smallest", 32)
        assert (code, err.count("\n"), "make room" in err) == (4, 1, True)
        target.unlink()
    read = iter(noise((48, 60)))

    def stopped(path: Path) -> Tensor:
        for image in read:
            return image
        raise KeyboardInterrupt

    monkeypatch.setattr("srgan_fast.train.store.read_rgb", stopped)
    code, _, err = run("pack", photos, target, "--smallest", 32)
    assert (code, "is not written" in err) == (130, True)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    read = iter(noise((48, 60)))

    def ended(path: Path) -> Tensor:
        for image in read:
            return image
        signal.raise_signal(signal.SIGTERM)
        return torch.zeros(3, 48, 60, dtype=torch.uint8)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("srgan_fast.train.store.read_rgb", ended)
    code, _, err = run("pack", photos, target, "--smallest", 32)
    assert (code, "is not written" in err) == (130, True)
    assert signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
