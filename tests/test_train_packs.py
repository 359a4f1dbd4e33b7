"""Packs of training images: whole or refused, and the folder that they were made of."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from training import config_of, noise

from srgan_fast.errors import InputError, UsageError
from srgan_fast.train.data import Batches
from srgan_fast.train.store import ImageStore, open_pack, read_images, read_pairs, write_pack

Run = Callable[..., tuple[int, str, str]]


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
