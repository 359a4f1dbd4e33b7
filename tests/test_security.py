"""Files made to do harm: refused in one line, before they cost memory. docs/security.md says what stands behind it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import zipfile
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
import safetensors.torch
import torch

from srgan_fast import archive, features, image, weights
from srgan_fast.errors import InputError, WeightsError
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.train import checkpoint
from srgan_fast.video.source import Source


def generator() -> Generator:
    torch.manual_seed(1)
    return Generator(GeneratorConfig(blocks=2, width=8)).eval()


def resident_peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 256 MiB of zeros, packed a thousand times smaller; torch.load would unpack it."""
    folder = tmp_path_factory.mktemp("bomb")
    torch.save({"head.0.weight": torch.zeros(4)}, folder / "small.pth")
    with (
        zipfile.ZipFile(folder / "small.pth") as small,
        zipfile.ZipFile(folder / "bomb.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
    ):
        for member in small.namelist():
            if not member.endswith("data/0"):
                packed.writestr(member, small.read(member))
                continue
            with packed.open(member, "w", force_zip64=True) as file:
                for _ in range(256):
                    file.write(bytes(1 << 20))
    return folder / "bomb.pth"


def test_archives_that_unpack_to_far_more(bomb: Path) -> None:
    before = resident_peak_mib()
    for read in (weights.load, features.load_squeezenet):
        with pytest.raises(WeightsError, match="that unpack to"):
            read(bomb)
    assert resident_peak_mib() - before < 100


def test_checkpoints_that_others_made(bomb: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    buffer = io.BytesIO()
    torch.save({"step": 3, "unknown": 4}, buffer)
    before = resident_peak_mib()
    for data in (bomb.read_bytes(), buffer.getvalue(), b"no pickle"):
        digest = hashlib.sha256(data).hexdigest().encode()
        (tmp_path / "step_00000003.ckpt").write_bytes(b"srgan-fast checkpoint 3\n" + digest + b"\n" + data)
        caplog.clear()
        assert checkpoint.newest(tmp_path) is None
        assert "step_00000003.ckpt is damaged" in caplog.text
    assert resident_peak_mib() - before < 100


def test_files_larger_than_any_weights(tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors", "a.bin"):
        with (tmp_path / name).open("wb") as file:
            os.truncate(file.fileno(), archive.MAX_FILE_BYTES + 1)  # takes no room on the disk
    (tmp_path / "a.param").write_text("7767517\n")
    for name in ("a.pth", "a.safetensors", "a.param"):
        with pytest.raises(WeightsError, match="at most 4 GiB"):
            weights.load(tmp_path / name)


def test_headers_larger_than_any_networks(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"srgan_fast": "x" * (9 << 20)})
    with pytest.raises(WeightsError, match=r"header claims \d+ bytes"):
        weights.load(path)


def relabelled(path: Path, **texts: str) -> Path:
    """A weights file with other texts in its metadata, and digests that are right."""
    weights.save(path, generator(), name="a", recipe={})
    with safetensors.safe_open(path, framework="pt") as stored:
        metadata = dict(stored.metadata())
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    for key, text in texts.items():
        metadata |= {key: text, f"{key}_sha256": hashlib.sha256(text.encode()).hexdigest()}
    safetensors.torch.save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize("key", ["srgan_fast", "srgan_fast_int8"])
def test_metadata_nested_without_end(tmp_path: Path, key: str) -> None:
    with pytest.raises(WeightsError, match=r"damaged|cannot be read"):
        weights.load(relabelled(tmp_path / "a.safetensors", **{key: "[" * 100_000}))


def test_names_that_would_steer_a_terminal(tmp_path: Path) -> None:
    weights.save(tmp_path / "a.safetensors", generator(), name="a", recipe={})
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="pt") as stored:
        about: dict[str, Any] = json.loads(stored.metadata()["srgan_fast"])
    for name in ("\x1b]0;mine\x07", "a\nb", 7):
        text = json.dumps(about | {"name": name})
        with pytest.raises(WeightsError, match="cannot be printed"):
            weights.load(relabelled(tmp_path / "a.safetensors", srgan_fast=text))


@pytest.mark.parametrize("options", ["0=-1 1=3 6=-2", "0=64 1=3 6=-1", "0=0 1=3 6=0"])
def test_ncnn_layers_that_would_read_a_file_again_and_again(tmp_path: Path, options: str) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(4096))
    layer = f"Convolution c 1 1 a b {options}\n"
    (tmp_path / "a.param").write_text("7767517\n1 1\n" + layer * 1000)
    with pytest.raises(WeightsError, match="without weights"):
        weights.load(tmp_path / "a.param")


def test_a_picture_that_one_decoder_reads_larger_than_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What counts the pixels is not what decodes 16-bit colour.
    deep = image.Picture(np.zeros((40, 30, 3), np.uint16))
    for name, codec in (("a.png", "png"), ("a.tif", "tiff")):
        image.write(tmp_path / name, deep)
        data = (tmp_path / name).read_bytes()
        assert image._decode_deep(codec, data, (30, 40)).rgb.shape == (40, 30, 3)
        for size in ((30, 39), (2, 2)):
            with pytest.raises((ValueError, OSError)):
                image._decode_deep(codec, data, size)


def test_lists_that_would_have_other_files_read(tmp_path: Path) -> None:
    secret = clips.make(tmp_path / "secret.ts", times=range(3))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"
    for name, text in (
        ("a.m3u8", playlist),
        ("b.mp4", f"ffconcat version 1.0\nfile {secret.name}\n"),
        ("c.mkv", playlist),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=r"got a list of others|damaged or another file"), Source(tmp_path / name):
            pass


def test_frames_with_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clips.make(tmp_path / "a.mkv", times=range(3), size=(32, 18))
    monkeypatch.setattr("srgan_fast.video.source.MAX_PIXELS", 32 * 18 - 1)
    with pytest.raises(InputError, match=r"got 32x18 in .*a\.mkv; cut or shrink it"), Source(path):
        pass
