"""Image files <-> pixels: colour, alpha, grey, 16 bits, ICC profiles, EXIF orientation.

Pillow reads and writes everything but 16-bit colour, for which it has no mode: FFmpeg (through PyAV) reads that, and
the few lines at the end write it, because FFmpeg's encoders would lose the profile and turn grey into colour.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from srgan_fast.atomic import atomic
from srgan_fast.errors import InputError, OutputError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})

# Above this Pillow calls a picture a decompression bomb; its own check can be switched off, this one cannot.
MAX_PIXELS = 178_956_970
# Of a file, which is read whole: that many pixels of 16 bits and four channels take a third of it.
_MAX_FILE_BYTES = 2**32

_SIXTEEN_BIT = frozenset({".png", ".tif", ".tiff"})
_WITH_ALPHA = frozenset({".png", ".webp", ".tif", ".tiff"})
_MAX_SIDE = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
_MAX_BYTES = {".tif": 2**32 - 2**24, ".tiff": 2**32 - 2**24, ".bmp": 2**32 - 2**24}


_STDERR = threading.Lock()


class Upscales(Protocol):
    """What `upscale_picture` asks of an upscaler: `Upscaler` is one."""

    def __call__(self, frames: NDArray[Any], /, *, layout: Literal["HWC"]) -> NDArray[Any]:
        """A frame [h, w, 3] of uint8 or uint16 -> [h*scale, w*scale, 3] in the same dtype."""


@dataclass(frozen=True)
class Picture:
    """A picture in memory; a grey one has three equal channels.

    Shapes:  rgb [h, w, 3], alpha [h, w] or None
    Dtypes:  uint8 or uint16, the same for both
    """

    rgb: NDArray[Any]
    alpha: NDArray[Any] | None = None
    grey: bool = False
    icc: bytes | None = None


def read(path: Path) -> Picture:
    """Read a picture by its content, whatever its suffix, turned the way its EXIF orientation says.

    Raises:  InputError in one line for whatever cannot be read as one picture
    """
    try:
        if path.is_dir():
            raise InputError(f"expected an image file, got a folder: {path}; name a file in it")
        if path.exists() and not path.is_file():
            raise InputError(f"expected an image file, got a device or a pipe: {path}; save the picture to a file")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise InputError(f"expected an image of at most 4 GiB, got {path.stat().st_size} bytes: {path}; cut it")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the name and its permissions") from error
    except InputError:
        raise
    except ValueError as error:  # a NUL in the name
        raise InputError(f"cannot read {str(path)!r}: {error}; check the name") from error
    if not data:
        raise InputError(f"expected an image, got an empty file: {path}; fetch or save it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata that changes no pixel
            with _quiet_libtiff() if data[:2] in (b"II", b"MM") else contextlib.nullcontext():
                return _decode(path, data)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(path) from error
    except MemoryError as error:
        raise InputError(f"expected an image that fits in memory, got one that does not: {path}; cut it") from error
    except Exception as error:
        # Decoders meet damaged files with whatever they stumble over: OSError, SyntaxError, struct.error, ...
        if isinstance(error, UnidentifiedImageError):
            reason = "no picture begins like this"
        else:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise InputError(
            f"expected a png, jpg, webp, tiff or bmp image, got a damaged or another file: {path} ({reason}); "
            "fetch or save it again"
        ) from error


def read_rgb(path: Path) -> Tensor:
    """A picture as uint8 [3, h, w]: grey becomes RGB, alpha is dropped, 16 bits are rounded to 8.

    Raises:  InputError as `read`
    """
    import torch

    rgb = read(path).rgb
    if rgb.dtype == np.uint16:
        rgb = ((rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return torch.from_numpy(rgb.transpose(2, 0, 1).copy())


def check_target(path: Path, picture: Picture, scale: int = 1) -> None:
    """Refuse, before any work, a file format that cannot hold the picture `scale` times larger.

    Raises:  UsageError naming a format that can
    """
    suffix = _suffix(path)
    if suffix not in IMAGE_SUFFIXES:
        raise UsageError(f"expected an output of {', '.join(sorted(IMAGE_SUFFIXES))}, got {path.name}")
    if picture.rgb.dtype == np.uint16 and suffix not in _SIXTEEN_BIT:
        raise UsageError(f"{suffix} cannot hold the 16 bits a channel of this picture; write {path.stem}.png or .tiff")
    if picture.alpha is not None and suffix not in _WITH_ALPHA:
        raise UsageError(f"{suffix} cannot hold this picture's transparency; write {path.stem}.png, .webp or .tiff")
    height, width = picture.rgb.shape[0] * scale, picture.rgb.shape[1] * scale
    if max(height, width) > _MAX_SIDE.get(suffix, 2**31 - 1):
        raise UsageError(
            f"{suffix} holds at most {_MAX_SIDE[suffix]} pixels a side, got {width}x{height}; write {path.stem}.png"
        )
    if height * width * 4 * picture.rgb.itemsize > _MAX_BYTES.get(suffix, 2**63):
        raise UsageError(f"{suffix} holds less than 4 GiB, got {width}x{height} pixels; write {path.stem}.png")
    if _grey_profile(picture) and (suffix == ".webp" or (_is_deep(picture) and suffix in (".tif", ".tiff"))):
        raise UsageError(f"{suffix} cannot hold this picture's grey colour profile; write {path.stem}.png")


def write(path: Path, picture: Picture) -> None:
    """Write a picture in the format of its suffix; the file is whole or it is not there.

    Raises:  UsageError as `check_target`; OutputError if the file cannot be written
    """
    check_target(path, picture)
    try:
        with atomic(path) as file:
            # Not straight into the file: Pillow's encoders take a short write, as on a full disk, for success.
            buffer = io.BytesIO()
            _encode(buffer, _suffix(path), picture)
            file.write(buffer.getbuffer())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot write {path}: {reason}; free some space or name another folder") from error


def _suffix(path: Path) -> str:
    """What names the format: the suffix of the file that a link leads to if it is an image's, else the link's own."""
    own = Path(os.path.realpath(path)).suffix.lower()
    return own if own in IMAGE_SUFFIXES else path.suffix.lower()


def upscale_picture(picture: Picture, upscale: Upscales) -> Picture:
    """Enlarge colours by `upscale` and transparency by bicubic interpolation, which keeps opaque opaque.

    Grey goes through `upscale` as colour and comes back as the BT.601 luma of the result.
    """
    # Said aloud: a picture three pixels high could be read as CHW.
    rgb = upscale(picture.rgb, layout="HWC")
    scale = rgb.shape[0] // picture.rgb.shape[0]
    if picture.grey:
        # In bands, for a luma of the whole would take several times the memory of the picture.
        bands = [_luma(rgb[top : top + 256]) for top in range(0, rgb.shape[0], 256)]
        rgb = np.broadcast_to(np.concatenate(bands)[..., None], rgb.shape)
    alpha = None if picture.alpha is None else _enlarge(picture.alpha, scale)
    return replace(picture, rgb=rgb, alpha=alpha)


def _luma(rgb: NDArray[Any]) -> NDArray[Any]:
    """BT.601 weights in 1/65536, which sum to one exactly: a grey stays what it is."""
    wide = rgb.astype(np.uint32)  # 65535 * 65536 + 32768 just fits
    luma = 19595 * wide[..., 0] + 38470 * wide[..., 1] + 7471 * wide[..., 2] + 32768
    return (luma >> 16).astype(rgb.dtype)


def _enlarge(plane: NDArray[Any], scale: int) -> NDArray[Any]:
    """Bicubic (a = -0.5, border replicated) for 8 and 16 bits, rounded once: [h, w] -> [h*scale, w*scale]."""
    height, width = plane.shape
    centre = (np.arange(scale) + 0.5) / scale - 0.5
    x = np.abs(np.arange(-2, 3) - centre[:, None])
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    taps = np.where(x <= 1, near, np.where(x <= 2, far, 0.0))  # [phase, neighbour]
    padded = np.pad(plane, 2, mode="edge")
    out = np.empty((height, scale, width, scale), plane.dtype)
    for top in range(0, height, 64):
        rows = min(64, height - top)
        block = padded[top : top + rows + 4].astype(np.float64)
        for phase in range(scale):
            tall = sum(taps[phase, k] * block[k : k + rows] for k in range(5))
            for column in range(scale):
                fine = sum(taps[column, k] * tall[:, k : k + width] for k in range(5))
                np.clip(fine, 0, np.iinfo(plane.dtype).max, out=fine)
                out[top : top + rows, phase, :, column] = np.floor(fine + 0.5)
    return out.reshape(height * scale, width * scale)


def _too_many_pixels(path: Path) -> InputError:
    return InputError(f"expected at most {MAX_PIXELS // 10**6} million pixels, got more in {path}; cut the picture")


@contextlib.contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """Libtiff tells of damage on the process's stderr, past Python; `read` says it in one line instead."""
    with _STDERR:
        try:
            kept = os.dup(2)
        except OSError:  # no stderr, nothing to keep quiet
            yield
            return
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _decode(path: Path, data: bytes) -> Picture:
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()  # all checksums and the end, which decoding skips where the pixels suffice
    with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP", "TIFF", "BMP"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise _too_many_pixels(path)
        frames = getattr(image, "n_frames", 1)
        # What phones append to a JPEG (format MPO: previews, gain maps) is not part of the picture.
        if frames > 1 and image.format != "MPO":
            raise InputError(f"expected one picture, got {frames} frames or pages in {path}; split it first")
        icc, orientation = image.info.get("icc_profile") or None, image.getexif().get(0x0112, 1)
        # TIFF's bits a sample, kind of grey, kind of numbers, kind of alpha.
        tags = dict(image.tag_v2) if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        boxes = [tile[1] or (0, 0, 0, 0) for tile in image.tile]
        if tags and sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes) < image.width * image.height:
            # Pillow would fill what no strip covers with black.
            raise ValueError(f"strips for less than {image.width}x{image.height} pixels")
        image.load()  # 16-bit colour too: FFmpeg passes over damage that Pillow finds
        if image.format == "PNG" and data[24] == 16 and data[25] in (2, 4, 6):
            return _orient(replace(_decode_deep("png", data, image.size), icc=icc), orientation)
        if tags.get(262) == 2 and max(tags.get(258, (8,))) == 16:
            return _orient(replace(_decode_deep("tiff", data, image.size, tags), icc=icc), orientation)
        if image.mode == "F" or tags.get(258, (8,))[0] in (12, 32, 64) or (tags and image.mode == "I"):
            raise InputError(
                f"expected 8 or 16 bits a channel, got {tags.get(258, ('other',))[0]} in {path}; convert it to 16"
            )
        upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "I;16", "I;16B", "I;16L"):
        return _sixteen_bit_grey(np.asarray(upright), icc, inverted=tags.get(262) == 0, image=image)
    if upright.mode == "CMYK":
        # The profile describes inks, which the result does not have.
        upright, icc = _to_srgb(upright, icc), None
    transparent = upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info
    grey = upright.mode in ("1", "L", "LA", "La")
    pixels = np.asarray(upright.convert("RGBA" if transparent else "RGB"))
    alpha = pixels[..., 3].copy() if transparent else None
    return Picture(np.ascontiguousarray(pixels[..., :3]), alpha, grey, icc)


def _sixteen_bit_grey(levels: NDArray[Any], icc: bytes | None, *, inverted: bool, image: Image.Image) -> Picture:
    levels = levels.astype(np.uint16)
    clear = image.info.get("transparency")
    alpha = None if clear is None else np.where(levels == clear, 0, 65535).astype(np.uint16)
    if inverted:  # TIFF's "white is zero", which Pillow leaves as it is at this depth
        levels = 65535 - levels
    return Picture(np.repeat(levels[..., None], 3, axis=2), alpha, grey=True, icc=icc)


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Colours as the profile means them; without one, or with a damaged one, as Pillow guesses them."""
    if icc:
        from PIL import ImageCms

        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                return converted
    return image.convert("RGB")


def _decode_deep(codec: str, data: bytes, size: tuple[int, int], tags: dict[int, Any] | None = None) -> Picture:
    """16-bit colour through FFmpeg, whose planes are read as they are: its conversions do not keep every bit."""
    import av

    decoder: Any = av.CodecContext.create(codec, "r")
    # By Pillow's reading, which `_decode` has admitted; FFmpeg counts rows that are aligned.
    decoder.options = {"max_pixels": str((size[0] + 128) * size[1])}
    frame = next(iter([*decoder.decode(av.Packet(data)), *decoder.decode(None)]))
    if (frame.width, frame.height) != size:
        raise ValueError(f"{size[0]}x{size[1]} pixels by one reading, {frame.width}x{frame.height} by another")
    name, levels = frame.format.name, np.dtype(">u2" if frame.format.name.endswith("be") else "<u2")
    planes = [
        np.frombuffer(plane, levels).reshape(plane.height, plane.line_size // 2)[: frame.height]
        for plane in frame.planes
    ]
    kind = name[:-2]
    if kind in ("gbrp16", "gbrap16"):
        planar = np.stack([planes[i][:, : frame.width] for i in (2, 0, 1, 3)[: len(planes)]], axis=2)
        pixels = planar.astype(np.uint16)
    elif kind in ("rgb48", "rgba64", "ya16"):
        channels = {"rgb48": 3, "rgba64": 4, "ya16": 2}[kind]
        packed = planes[0][:, : frame.width * channels].reshape(frame.height, frame.width, channels)
        pixels = packed.astype(np.uint16)
    else:
        raise ValueError(f"pixels of kind {name}")
    if kind == "ya16":
        return Picture(np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 1].copy(), grey=True)
    rgb, alpha = np.ascontiguousarray(pixels[..., :3]), None
    meaning = (tags or {}).get(338, (2,))[:1]  # TIFF: 0 anything, 1 alpha that colours are multiplied by, 2 alpha
    if pixels.shape[2] == 4 and meaning != (0,):
        alpha = pixels[..., 3].copy()
        if meaning == (1,):
            over = np.maximum(alpha, 1).astype(np.uint64)[..., None]
            rgb = np.minimum((rgb.astype(np.uint64) * 65535 + over // 2) // over, 65535).astype(np.uint16)
    return Picture(rgb, alpha)


def _orient(picture: Picture, orientation: int) -> Picture:
    def turn(x: NDArray[Any]) -> NDArray[Any]:
        across = np.swapaxes(x, 0, 1)
        turned = {
            2: x[:, ::-1],
            3: x[::-1, ::-1],
            4: x[::-1],
            5: across,
            6: across[:, ::-1],
            7: across[::-1, ::-1],
            8: across[::-1],
        }
        return np.ascontiguousarray(turned.get(orientation, x))

    alpha = None if picture.alpha is None else turn(picture.alpha)
    return replace(picture, rgb=turn(picture.rgb), alpha=alpha)


def _is_deep(picture: Picture) -> bool:
    """Whether Pillow has no mode for it: 16 bits and more than one channel."""
    return picture.rgb.dtype == np.uint16 and not (picture.grey and picture.alpha is None)


def _grey_profile(picture: Picture) -> bool:
    return picture.icc is not None and picture.icc[16:20] == b"GRAY"


def _channels(picture: Picture) -> NDArray[Any]:
    """[h, w, 1..4]: grey or colour, then alpha if there is one."""
    colour = picture.rgb[..., :1] if picture.grey else picture.rgb
    return colour if picture.alpha is None else np.concatenate([colour, picture.alpha[..., None]], axis=2)


def _encode(file: IO[bytes], suffix: str, picture: Picture) -> None:
    if _is_deep(picture):
        (_encode_deep_png if suffix == ".png" else _encode_deep_tiff)(file, picture)
        return
    channels = _channels(picture)
    image = Image.fromarray(np.ascontiguousarray(channels[..., 0] if channels.shape[2] == 1 else channels))
    options: dict[str, Any] = {"icc_profile": picture.icc} if picture.icc else {}
    if suffix in (".jpg", ".jpeg"):
        image.save(file, "JPEG", quality=95, subsampling=0, **options)
    elif suffix == ".webp":
        image.convert("RGB" if picture.alpha is None else "RGBA").save(
            file, "WEBP", lossless=True, exact=True, **options
        )
    elif suffix in (".tif", ".tiff"):
        image.save(file, "TIFF", compression="tiff_lzw", **options)
    elif suffix == ".png":
        image.save(file, "PNG", compress_level=3, **options)
    else:
        # BMP has no place for a profile, so the colours become what a file without one means.
        (_to_srgb(image, picture.icc) if picture.icc else image).save(file, "BMP")


def _encode_deep_png(file: IO[bytes], picture: Picture) -> None:
    def chunk(kind: bytes, body: bytes) -> None:
        file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))

    height, width = picture.rgb.shape[:2]
    colour_type = 2 * (not picture.grey) + 4 * (picture.alpha is not None)
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    if picture.icc:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc))
    packer = zlib.compressobj(3)
    above = None
    for top in range(0, height, 256):
        band = replace(
            picture,
            rgb=picture.rgb[top : top + 256],
            alpha=None if picture.alpha is None else picture.alpha[top : top + 256],
        )
        rows = np.ascontiguousarray(_channels(band).astype(">u2")).view(np.uint8).reshape(len(band.rgb), -1)
        before = np.concatenate([np.zeros_like(rows[:1]) if above is None else above, rows[:-1]])
        # Every row as its difference from the one above (filter 2), which costs little and packs well.
        filtered = np.concatenate([np.full((len(rows), 1), 2, np.uint8), rows - before], axis=1)
        above = rows[-1:]
        if packed := packer.compress(filtered.tobytes()):
            chunk(b"IDAT", packed)
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def _encode_deep_tiff(file: IO[bytes], picture: Picture) -> None:
    # Grey with alpha becomes colour: Pillow and FFmpeg do not read 16-bit pairs.
    channels = _channels(replace(picture, grey=False)).astype("<u2")
    height, width, count = channels.shape
    strip = zlib.compress(channels.tobytes(), 3)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[256], tags[257], tags[258] = width, height, (16,) * count
    tags[259], tags[262], tags[277] = 8, 2, count  # deflate, RGB
    tags.tagtype[273] = tags.tagtype[279] = 4  # 32 bits, whatever the values
    tags[273], tags[278], tags[279] = 0, height, len(strip)  # one strip, right behind the directory
    if count == 4:
        tags[338] = 2
    if picture.icc:
        tags.tagtype[34675] = 7
        tags[34675] = picture.icc
    tags.save(file)
    file.write(strip)
