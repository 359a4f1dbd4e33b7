"""Image files: what is read and written is what was meant, and no damaged file is more than one line."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from srgan_fast import image
from srgan_fast.errors import InputError, OutputError, UsageError
from srgan_fast.image import Picture


def pixels(dtype: Any = np.uint8, channels: int = 3, height: int = 9, width: int = 7) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".tif", ".bmp", ".webp"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    picture = Picture(pixels())
    image.write(tmp_path / f"a{suffix}", picture)
    assert np.array_equal(image.read(tmp_path / f"a{suffix}").rgb, picture.rgb)
    assert os.listdir(tmp_path) == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".webp"])
def test_alpha_is_kept(tmp_path: Path, suffix: str) -> None:
    alpha = np.full((9, 7), 255, np.uint8)
    alpha[2, 3] = 100
    picture = Picture(pixels(), alpha)
    image.write(tmp_path / f"a{suffix}", picture)
    back = image.read(tmp_path / f"a{suffix}")
    assert back.alpha is not None
    assert np.array_equal(back.alpha, alpha)
    assert np.array_equal(back.rgb, picture.rgb)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("kind", ["colour", "alpha", "grey"])
def test_sixteen_bits_are_kept(tmp_path: Path, suffix: str, kind: str) -> None:
    rgb = pixels(np.uint16)
    alpha = pixels(np.uint16, 1)[..., 0] if kind == "alpha" else None
    if kind == "grey":
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    image.write(tmp_path / f"a{suffix}", Picture(rgb, alpha, kind == "grey"))
    back = image.read(tmp_path / f"a{suffix}")
    assert back.rgb.dtype == np.uint16
    assert np.array_equal(back.rgb, rgb)
    if alpha is not None:
        assert back.alpha is not None
        assert np.array_equal(back.alpha, alpha)
    assert back.grey is (kind == "grey")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "PA"])
def test_pillow_modes_are_read(tmp_path: Path, mode: str) -> None:
    source = Image.fromarray(pixels()).convert("RGBA" if mode == "PA" else "RGB").convert("P" if mode == "PA" else mode)
    if mode == "PA":
        source.info["transparency"] = 0
    suffix = ".tif" if mode == "CMYK" else ".png"
    source.save(tmp_path / f"a{suffix}")
    picture = image.read(tmp_path / f"a{suffix}")
    assert picture.rgb.shape == (9, 7, 3)
    assert picture.grey is (mode in ("L", "LA", "1"))
    assert (picture.alpha is not None) is (mode in ("LA", "RGBA", "PA"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = Image.fromarray(pixels())
    source.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        want = np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(image.read(tmp_path / "a.png").rgb, want)
    assert np.array_equal(image._orient(Picture(pixels()), orientation).rgb, want)


def test_icc_profile_is_kept(tmp_path: Path) -> None:
    profile = b"an ICC profile, as far as a container can tell" * 9
    for suffix in (".png", ".jpg", ".tiff", ".webp"):
        image.write(tmp_path / f"a{suffix}", Picture(pixels(), icc=profile))
        assert image.read(tmp_path / f"a{suffix}").icc == profile
    image.write(tmp_path / "deep.png", Picture(pixels(np.uint16), icc=profile))
    assert image.read(tmp_path / "deep.png").icc == profile


def triple(frame: np.ndarray) -> np.ndarray:
    return frame.repeat(3, axis=0).repeat(3, axis=1)


def test_upscaling_keeps_what_a_picture_is() -> None:
    alpha = np.full((9, 7), 255, np.uint8)
    result = image.upscale_picture(Picture(pixels(), alpha, icc=b"x"), triple)
    assert result.rgb.shape == (27, 21, 3)
    assert result.alpha is not None
    assert (result.alpha == 255).all()
    assert result.icc == b"x"
    grey = image.upscale_picture(Picture(np.full((4, 4, 3), 77, np.uint8), grey=True), triple)
    assert (grey.rgb == 77).all()


def test_formats_that_cannot_hold_a_picture_are_refused_first() -> None:
    deep, clear = Picture(pixels(np.uint16)), Picture(pixels(), np.zeros((9, 7), np.uint8))
    for name, picture in (("a.jpg", deep), ("a.webp", deep), ("a.jpg", clear), ("a.bmp", clear), ("a.gif", clear)):
        with pytest.raises(UsageError):
            image.check_target(Path(name), picture)


def test_eight_bits_of_sixteen(tmp_path: Path) -> None:
    image.write(tmp_path / "a.png", Picture(np.array([[[0, 128, 65535]]], np.uint16)))
    assert image.read_rgb(tmp_path / "a.png").flatten().tolist() == [0, 0, 255]


def good(suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, {".jpg": "JPEG", ".png": "PNG", ".tiff": "TIFF", ".bmp": "BMP"}[suffix])
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".bmp"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_one_line(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    content = good(suffix)
    kind = data.draw(st.sampled_from(["cut", "flip", "noise"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif kind == "flip":
        at = data.draw(st.integers(0, len(content) - 1))
        content = content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
    else:
        content = data.draw(st.binary(max_size=200))
    (tmp_path / "bad").write_bytes(content)
    try:
        image.read(tmp_path / "bad")
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017  (reading may also succeed)


def test_files_that_are_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (2, 2)).save(tmp_path / "two.tiff", save_all=True, append_images=[Image.new("RGB", (2, 2))])
    for path, said in (("empty.png", "empty"), ("none.png", "No such"), (".", "folder"), ("two.tiff", "2 frames")):
        with pytest.raises(InputError, match=said):
            image.read(tmp_path / path)


def test_a_png_that_claims_too_much(tmp_path: Path) -> None:
    content = bytearray(good(".png"))
    content[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bytes(content))
    with pytest.raises(InputError, match="pixels"):
        image.read(tmp_path / "bomb.png")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        image.write(tmp_path / "no" / "a.png", Picture(pixels()))
