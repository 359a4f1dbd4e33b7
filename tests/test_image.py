"""Image files: every kind goes in and comes out as it was, damaged ones give one line, nothing is half-written."""

from __future__ import annotations

import io
import os
import resource
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin
from torch.nn import functional as F

from srgan_fast import image
from srgan_fast.errors import InputError, OutputError, UsageError
from srgan_fast.image import IMAGE_SUFFIXES, Picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tiff": "TIFF", "bmp": "BMP"}

fuzzed = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def picture(dtype: type = np.uint8, *, grey: bool = False, alpha: bool = False, icc: bytes | None = SRGB) -> Picture:
    rgb = noise(7, 5, 3, dtype=dtype)
    rgb = np.repeat(rgb[..., :1], 3, axis=2) if grey else rgb
    return Picture(rgb, noise(7, 5, dtype=dtype, seed=1) if alpha else None, grey, icc)


def nearest(frames: NDArray[Any], /, *, layout: Literal["HWC"]) -> NDArray[Any]:
    assert layout == "HWC"
    return frames.repeat(4, axis=0).repeat(4, axis=1)


def same(one: Picture, other: Picture) -> bool:
    if (one.alpha is None) != (other.alpha is None) or one.rgb.dtype != other.rgb.dtype:
        return False
    alpha = one.alpha is None or other.alpha is None or np.array_equal(one.alpha, other.alpha)
    return alpha and np.array_equal(one.rgb, other.rgb)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".webp", ".bmp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_what_is_written_is_read(tmp_path: Path, suffix: str, dtype: type, grey: bool, alpha: bool) -> None:
    path = tmp_path / f"a{suffix}"
    before = picture(dtype, grey=grey, alpha=alpha, icc=None if suffix == ".bmp" else SRGB)
    if (dtype is np.uint16 and suffix in (".webp", ".bmp")) or (alpha and suffix == ".bmp"):
        with pytest.raises(UsageError, match=r"write a\.png"):
            image.write(path, before)
        assert list(tmp_path.iterdir()) == []
        return
    image.write(path, before)
    after = image.read(path)
    assert same(before, after)
    assert after.icc == before.icc
    if suffix == ".png":
        assert after.grey == grey
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_is_close_in_full_colour_resolution_and_keeps_the_profile(tmp_path: Path, suffix: str, grey: bool) -> None:
    ramp = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    rgb = np.stack([ramp, ramp if grey else ramp.T, ramp], axis=2)
    path = tmp_path / f"a{suffix}"
    image.write(path, Picture(rgb, grey=grey, icc=SRGB))
    after = image.read(path)
    assert np.abs(after.rgb.astype(int) - rgb).mean() < 2
    assert after.icc == SRGB
    assert after.grey == grey
    with Image.open(path) as opened:
        assert all(layer[1:3] == (1, 1) for layer in opened.layer)  # type: ignore[attr-defined]


def test_targets_that_cannot_hold_the_picture_are_refused() -> None:
    for name, what in (("a.jpg", picture(alpha=True)), ("a.jpg", picture(np.uint16)), ("a.bmp", picture(alpha=True))):
        with pytest.raises(UsageError, match=r"cannot hold .* write a\.png"):
            image.check_target(Path(name), what)
    with pytest.raises(UsageError, match=r"expected an output of .*got a\.gif"):
        image.check_target(Path("a.gif"), picture())
    grey_profile = bytes(16) + b"GRAY" + bytes(108)
    with pytest.raises(UsageError, match="grey colour profile"):
        image.check_target(Path("a.webp"), picture(grey=True, icc=grey_profile))
    wide = Picture(np.broadcast_to(np.uint8(0), (2, 5000, 3)))
    image.check_target(Path("a.webp"), wide)
    with pytest.raises(UsageError, match="16383 pixels a side, got 20000x8"):
        image.check_target(Path("a.webp"), wide, scale=4)
    with pytest.raises(UsageError, match="4 GiB"):
        image.check_target(Path("a.tif"), Picture(np.broadcast_to(np.uint16(0), (9000, 9000, 3))), scale=4)


def test_a_bmp_has_no_profile_so_its_colours_are_converted(tmp_path: Path) -> None:
    image.write(tmp_path / "a.bmp", picture(icc=SRGB))
    assert np.abs(image.read(tmp_path / "a.bmp").rgb.astype(int) - picture().rgb).max() <= 1
    image.write(tmp_path / "b.bmp", picture(icc=b"not a profile"))
    assert np.array_equal(image.read(tmp_path / "b.bmp").rgb, picture().rgb)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "deep"), [(".png", False), (".png", True), (".jpg", False), (".tif", False)])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str, deep: bool) -> None:
    # Quadrants of plain colour, 16 pixels a side, so that JPEG keeps them apart.
    plain = np.zeros((32, 48), np.uint8)
    plain[:16, :16], plain[:16, 16:], plain[16:, :16] = 250, 170, 90
    turns: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).T,
        8: np.rot90,
    }
    path, exif = tmp_path / f"a{suffix}", Image.Exif()
    exif[0x0112] = orientation
    if deep:
        rows = np.repeat(plain[..., None].astype(">u2") * 257, 3, axis=2).reshape(32, -1).view(np.uint8)
        filtered = np.concatenate([np.zeros((32, 1), np.uint8), rows], axis=1).tobytes()
        path.write_bytes(png(48, 32, 16, 2, filtered, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    else:
        Image.fromarray(np.repeat(plain[..., None], 3, axis=2)).save(path, exif=exif)
    after = image.read(path)
    assert after.rgb.dtype == (np.uint16 if deep else np.uint8)
    got = after.rgb[..., 0] // (257 if deep else 1)
    wanted = turns[orientation](plain)
    assert got.shape == wanted.shape
    assert np.abs(got.astype(int) - wanted).max() <= 8


def test_pillow_modes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    palette = Image.fromarray(noise(6, 5, 3)).quantize(16)
    palette.save(path)
    assert np.array_equal(image.read(path).rgb, np.asarray(palette.convert("RGB")))
    palette.save(path, transparency=3)
    clear = image.read(path)
    assert clear.alpha is not None
    assert np.array_equal(clear.alpha == 0, np.asarray(palette) == 3)
    Image.fromarray(noise(6, 5) > 99).save(path)
    assert image.read(path).grey
    assert set(np.unique(image.read(path).rgb)) <= {0, 255}
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(image.read(tmp_path / "a.jpg").rgb.astype(int) - (255, 0, 0)).max() <= 3
    Image.new("F", (3, 3)).save(tmp_path / "f.tif")
    Image.new("I", (3, 3)).save(tmp_path / "i.tif")
    for name in ("f.tif", "i.tif"):
        with pytest.raises(InputError, match="8 or 16 bits a channel"):
            image.read(tmp_path / name)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_the_transparent_colour_of_16_bit_pngs(tmp_path: Path, colour_type: int, channels: int) -> None:
    levels = np.repeat(np.array([[1], [300], [65535]], ">u2"), channels, axis=1)
    key = chunk(b"tRNS", np.full(channels, 300, ">u2").tobytes())
    (tmp_path / "a.png").write_bytes(png(3, 1, 16, colour_type, b"\0" + levels.tobytes(), key))
    after = image.read(tmp_path / "a.png")
    assert after.rgb[0, :, 0].tolist() == [1, 300, 65535]
    assert after.alpha is not None
    assert after.alpha.tolist() == [[65535, 0, 65535]]


def test_16_bit_tiffs_of_other_programs(tmp_path: Path) -> None:
    """White as zero, and colours multiplied by their alpha."""
    levels = noise(4, 4, dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as opened:
        inverted = opened.tag_v2[262] == 0  # type: ignore[attr-defined]
    assert np.array_equal(image.read(tmp_path / "a.tif").rgb[..., 0], 65535 - levels if inverted else levels)

    alpha, rgb = noise(4, 4, dtype=np.uint16) // 2 + 32768, noise(4, 4, 3, dtype=np.uint16, seed=3)
    multiplied = (rgb.astype(np.uint64) * alpha[..., None] + 32767) // 65535
    image.write(tmp_path / "b.tif", Picture(multiplied.astype(np.uint16), alpha))
    data = bytearray((tmp_path / "b.tif").read_bytes())
    at = data.index(struct.pack("<HHI", 338, 3, 1)) + 8
    data[at] = 1
    (tmp_path / "b.tif").write_bytes(data)
    after = image.read(tmp_path / "b.tif")
    assert np.abs(after.rgb.astype(int) - rgb).max() <= 2


def test_phones_append_previews_to_a_jpeg(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (4, 4), "blue")
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    after = image.read(tmp_path / "a.jpg")
    assert after.rgb.shape == (8, 8, 3)
    assert after.rgb[0, 0, 0] > 250


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_animations_and_pages_are_refused(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(noise(8, 8, 3, seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="got 3 frames or pages"):
        image.read(tmp_path / f"a.{kind}")


def test_read_rgb_is_8_bits_and_three_channels(tmp_path: Path) -> None:
    for what in (picture(), picture(grey=True), picture(np.uint16), picture(np.uint16, grey=True, alpha=True)):
        image.write(tmp_path / "a.png", what)
        got = image.read_rgb(tmp_path / "a.png")
        assert got.shape == (3, 7, 5)
        assert got.dtype == torch.uint8
        assert got.is_contiguous()
        levels = what.rgb if what.rgb.dtype == np.uint8 else np.floor(what.rgb / 257 + 0.5)
        assert np.array_equal(got.permute(1, 2, 0).numpy(), levels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("grey", [False, True])
def test_upscaled_pictures_keep_their_kind(dtype: type, grey: bool) -> None:
    before = picture(dtype, grey=grey, alpha=True)
    after = image.upscale_picture(before, nearest)
    assert after.rgb.shape == (28, 20, 3)
    assert (after.rgb.dtype, after.grey, after.icc) == (before.rgb.dtype, grey, SRGB)
    assert np.array_equal(after.rgb, nearest(before.rgb, layout="HWC"))
    assert after.alpha is not None
    assert after.alpha.shape == (28, 20)
    assert after.alpha.dtype == dtype
    assert image.upscale_picture(picture(dtype), nearest).alpha is None


def test_grey_is_the_luma_of_the_result() -> None:
    def tint(frames: NDArray[Any], /, *, layout: str) -> NDArray[Any]:
        return np.broadcast_to(np.array([100, 200, 50], np.uint8), (8, 8, 3)).copy()

    after = image.upscale_picture(Picture(np.zeros((2, 2, 3), np.uint8), grey=True), tint)
    assert np.unique(after.rgb).tolist() == [round(0.299 * 100 + 0.587 * 200 + 0.114 * 50)]
    levels = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(image._luma(np.repeat(levels[:, None], 3, axis=1)[None])[0], levels)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_bicubic_and_constants_are_exact(scale: int, dtype: type) -> None:
    # More rows than one band has.
    plane = noise(150, 9, dtype=dtype)
    x = F.pad(torch.from_numpy(plane.astype(np.float64))[None, None], (2, 2, 2, 2), mode="replicate")
    x = F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True)[0, 0]
    wanted = x[2 * scale : -2 * scale, 2 * scale : -2 * scale].numpy().clip(0, np.iinfo(dtype).max)
    assert np.abs(image._enlarge(plane, scale) - wanted).max() <= 0.5 + 1e-2
    for level in (0, 1, 128, np.iinfo(dtype).max):
        assert np.unique(image._enlarge(np.full((3, 1), level, dtype), scale)).tolist() == [level]


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (
        ("", "got a folder"),
        ("empty.png", "got an empty file"),
        ("text.png", "no picture begins like this"),
        ("missing.png", "No such file"),
        ("pipe.png", "a device or a pipe"),
        ("nul\0.png", "check the name"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            image.read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    image.write(tmp_path / "a.png", picture())
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        image.read(tmp_path / "a.png")


@pytest.mark.parametrize(("side", "depth"), [(60000, 8), (13000, 8), (13000, 16), (2**31 - 1, 8)])
def test_headers_that_lie(tmp_path: Path, side: int, depth: int) -> None:
    (tmp_path / "a.png").write_bytes(png(side, side, depth, 2, b"\0"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as caught:
        image.read(tmp_path / "a.png")
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_tiffs_whose_strips_hold_less_than_the_header_says(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(9, 9, 3)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    at = data.index(struct.pack("<HHI", 257, 4, 1)) + 8
    for height in (10, 16777225):
        data[at : at + 4] = struct.pack("<I", height)
        (tmp_path / "a.tif").write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            image.read(tmp_path / "a.tif")


def test_tiffs_in_planes(tmp_path: Path) -> None:
    # Three planes, one strip each, uncompressed, as a few programs write them.
    pixels = noise(6, 5, 3)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[256], tags[257], tags[258], tags[259], tags[262], tags[277], tags[278] = 5, 6, (8, 8, 8), 1, 2, 3, 6
    tags[284], tags[279] = 2, (30, 30, 30)
    tags.tagtype[273] = 4
    tags[273] = (400, 430, 460)
    buffer = io.BytesIO()
    tags.save(buffer)
    data = buffer.getvalue()
    # The first offset is moved behind the directory by the writer of the tags; the others are as given.
    at = data.index(struct.pack("<HHI", 273, 4, 3)) + 8
    start = struct.unpack("<I", data[at : at + 4])[0]
    data = bytearray(data.ljust(490, b"\0"))
    data[start : start + 12] = struct.pack("<3I", 400, 430, 460)
    data[400:490] = pixels.transpose(2, 0, 1).tobytes()
    (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(image.read(tmp_path / "a.tif").rgb, pixels)


def test_bombs_are_refused_even_where_pillows_guard_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(png(60000, 60000, 8, 2, b"\0"))
    with pytest.raises(InputError, match="at most 178 million pixels"):
        image.read(tmp_path / "a.png")


def test_writing_to_where_one_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "missing" / "a.png", tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(OutputError, match="cannot write") as caught:
            image.write(path, picture())
        assert "\n" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(f"a{suffix}", np.uint8) for suffix in sorted(IMAGE_SUFFIXES)] + [("a.png", np.uint16), ("a.tif", np.uint16)],
)
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, name: str, dtype: type) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so that writing beyond the limit fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            image.write(path, Picture(noise(64, 64, 3, dtype=dtype)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        image.write(tmp_path / "a.png", picture())
    assert list(tmp_path.iterdir()) == []


def test_modes_and_links_of_written_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        image.write(tmp_path / "a.png", picture())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640
    (tmp_path / "link.png").symlink_to("a.png")
    image.write(tmp_path / "link.png", picture(grey=True))
    assert (tmp_path / "link.png").is_symlink()
    assert image.read(tmp_path / "a.png").grey
    (tmp_path / "b.png").symlink_to("b.jpg")
    with pytest.raises(UsageError, match="16 bits"):
        image.write(tmp_path / "b.png", picture(np.uint16))
    image.write(tmp_path / ("x" * 251 + ".png"), picture())  # as long as a name may be


def samples() -> dict[str, bytes]:
    """Small valid files of every kind."""
    made = {}
    for kind in FORMATS:
        buffer = io.BytesIO()
        Image.fromarray(noise(9, 9, 3)).save(buffer, FORMATS[kind], **({} if kind == "bmp" else {"icc_profile": SRGB}))
        made[kind] = buffer.getvalue()
    for kind in ("png", "tiff"):
        for alpha in (False, True):
            buffer = io.BytesIO()
            image._encode(buffer, f".{kind}", picture(np.uint16, alpha=alpha))
            made[f"{kind}16{'a' * alpha}"] = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(noise(9, 9, 3)).quantize(8).save(buffer, "PNG", transparency=1)
    made["palette"] = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(noise(9, 9, 4)).save(buffer, "TIFF", compression="tiff_lzw")
    made["lzw"] = buffer.getvalue()
    return made


SAMPLES = samples()


def read_or_refuse(path: Path, data: bytes) -> bool:
    """Whether it was read; anything but a picture or one line of InputError fails."""
    path.write_bytes(data)
    message = ""
    try:
        got = image.read(path)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    if message:
        return False
    assert got.rgb.ndim == 3
    assert got.rgb.shape[2] == 3
    assert got.rgb.dtype in (np.uint8, np.uint16)
    assert got.alpha is None or (got.alpha.shape == got.rgb.shape[:2] and got.alpha.dtype == got.rgb.dtype)
    return True


@pytest.mark.parametrize("kind", SAMPLES)
def test_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    data = SAMPLES[kind]
    assert read_or_refuse(tmp_path / "a", data)
    # Only what follows the pixels may be missing: the end chunk of a PNG, the end marker of a JPEG.
    for length in sorted({*range(1, min(len(data), 64)), *range(64, len(data) - 16, max(1, len(data) // 40))}):
        assert not read_or_refuse(tmp_path / "a", data[:length]), length


def test_damaged_pixels_of_a_png_are_found(tmp_path: Path) -> None:
    for kind in ("png", "png16", "palette"):
        for at in range(SAMPLES[kind].index(b"IDAT") + 4, len(SAMPLES[kind]) - 12):
            damaged = bytearray(SAMPLES[kind])
            damaged[at] ^= 4
            assert not read_or_refuse(tmp_path / "a", bytes(damaged)), at


@fuzzed
@given(st.data())
def test_flipped_bits(tmp_path: Path, data: st.DataObject) -> None:
    sample = bytearray(SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))])
    # Headers twice as often as the rest: that is where decoders believe what they read.
    end = data.draw(st.sampled_from([min(len(sample), 120), len(sample)]))
    for _ in range(data.draw(st.integers(1, 4))):
        sample[data.draw(st.integers(0, end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    read_or_refuse(tmp_path / "a", bytes(sample))


@fuzzed
@given(st.binary(max_size=200), st.sampled_from([b"", *(data[:n] for data in SAMPLES.values() for n in (4, 16, 40))]))
def test_random_bytes(tmp_path: Path, tail: bytes, head: bytes) -> None:
    read_or_refuse(tmp_path / "a", head + tail)


def test_decoders_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for seed, (kind, sample) in enumerate(sorted(SAMPLES.items())):
        damaged = bytearray(sample)
        for at in np.random.default_rng(seed).integers(8, len(damaged), 6):
            damaged[at] ^= 0x55
        read_or_refuse(tmp_path / kind, bytes(damaged))
        read_or_refuse(tmp_path / kind, sample[: len(sample) * 3 // 4])
    assert capfd.readouterr() == ("", "")


def test_every_suffix_is_written(tmp_path: Path) -> None:
    for suffix in IMAGE_SUFFIXES:
        image.write(tmp_path / f"a{suffix}", picture(icc=None))
        assert image.read(tmp_path / f"a{suffix}").rgb.shape == (7, 5, 3)
