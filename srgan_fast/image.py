"""Image files <-> pixels: colour, alpha, grey, 16 bits, ICC profiles, EXIF orientation.

Pillow reads and writes everything but 16-bit colour, which it has no mode for; FFmpeg (through PyAV) does that.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.errors import InputError, OutputError, UsageError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})

_SIXTEEN_BIT = frozenset({".png", ".tif", ".tiff"})
_WITH_ALPHA = frozenset({".png", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Picture:
    """A picture in memory.

    Shapes:  rgb [h, w, 3], alpha [h, w] or None
    Dtypes:  uint8 or uint16, the same for both
    """

    rgb: NDArray[Any]
    alpha: NDArray[Any] | None = None
    grey: bool = False
    icc: bytes | None = None


def read(path: Path) -> Picture:
    """Read a picture, turned the way its EXIF orientation says.

    Raises:  InputError in one line for whatever cannot be read as one picture
    """
    if path.is_dir():
        raise InputError(f"expected an image file, got a folder: {path}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the name and its permissions") from error
    if not data:
        raise InputError(f"expected an image, got an empty file: {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata that changes no pixel
            return _decode(path, data)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(
            f"{path} claims more pixels than a picture may have here (178 million); cut it first"
        ) from None
    except MemoryError:
        raise InputError(f"{path} is too large for this machine's memory") from None
    except Exception as error:
        # Decoders meet damaged files with whatever they stumble over: OSError, SyntaxError, struct.error, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise InputError(f"expected an image, got a damaged or unknown file: {path} ({reason})") from error


def read_rgb(path: Path) -> Tensor:
    """A picture as uint8 [3, h, w]: grey becomes RGB, alpha is dropped, 16 bits are rounded to 8.

    Raises:  InputError as `read`
    """
    rgb = read(path).rgb
    if rgb.dtype == np.uint16:
        rgb = ((rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1).contiguous()


def check_target(path: Path, picture: Picture) -> None:
    """Refuse, before any work, a file format that cannot hold the picture.

    Raises:  UsageError naming a format that can
    """
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise UsageError(f"expected an output of {', '.join(sorted(IMAGE_SUFFIXES))}, got {path.name}")
    if picture.rgb.dtype == np.uint16 and suffix not in _SIXTEEN_BIT:
        raise UsageError(f"{suffix} cannot hold 16 bits a channel; write {path.stem}.png or .tiff")
    if picture.alpha is not None and suffix not in _WITH_ALPHA:
        raise UsageError(f"{suffix} cannot hold transparency; write {path.stem}.png, .webp or .tiff")
    if suffix == ".webp" and max(picture.rgb.shape[:2]) > 16383:
        raise UsageError(f"webp holds at most 16383 pixels a side; write {path.stem}.png")


def write(path: Path, picture: Picture) -> None:
    """Write a picture in the format of its suffix; the file is whole or it is not there.

    Raises:  UsageError as `check_target`; OutputError if the file cannot be written
    """
    check_target(path, picture)
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix, delete=False
        ) as part:
            try:
                part.write(_encode(path.suffix.lower(), picture))
                part.flush()
                os.fsync(part.fileno())
                os.chmod(part.name, 0o644)
                os.replace(part.name, path)
            except BaseException:
                os.unlink(part.name)
                raise
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; name a folder that can be written"
        ) from error


def upscale_picture(picture: Picture, upscale: Callable[[NDArray[Any]], NDArray[Any]]) -> Picture:
    """Enlarge colours by `upscale` and transparency by bicubic interpolation, which keeps opaque opaque."""
    rgb = upscale(picture.rgb)
    scale = rgb.shape[0] // picture.rgb.shape[0]
    if picture.grey:
        # BT.601 weights in 1/65536, which sum to one exactly.
        weights = np.array([19595, 38470, 7471], np.uint64)
        luma = ((rgb.astype(np.uint64) @ weights + 32768) >> 16).astype(rgb.dtype)
        rgb = np.repeat(luma[..., None], 3, axis=2)
    alpha = None if picture.alpha is None else _enlarge_alpha(picture.alpha, scale)
    return replace(picture, rgb=rgb, alpha=alpha)


def _enlarge_alpha(alpha: NDArray[Any], scale: int) -> NDArray[Any]:
    levels = int(np.iinfo(alpha.dtype).max)
    height, width = alpha.shape
    x = torch.from_numpy(alpha.astype(np.float32))[None, None]
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    x = F.interpolate(x, size=((height + 4) * scale, (width + 4) * scale), mode="bicubic", antialias=True)
    x = x[0, 0, 2 * scale : -2 * scale, 2 * scale : -2 * scale]
    return x.clamp(0, levels).add(0.5).floor().numpy().astype(alpha.dtype)


def _decode(path: Path, data: bytes) -> Picture:
    with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP", "TIFF", "BMP"]) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise InputError(f"expected one picture, got {frames} frames or pages in {path}; split it first")
        icc, orientation = image.info.get("icc_profile"), image.getexif().get(0x0112, 1)
        if _is_deep_colour(image, data):
            return _orient(_decode_deep(data, icc), orientation)
        image.load()
        upright = ImageOps.exif_transpose(image)
    return _from_pillow(upright, icc)


def _from_pillow(image: Image.Image, icc: bytes | None) -> Picture:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.max(initial=0) > 65535 or levels.min(initial=0) < 0:
            raise InputError("expected 8 or 16 bits a channel, got 32")
        return Picture(np.repeat(levels.astype(np.uint16)[..., None], 3, axis=2), grey=True, icc=icc)
    if image.mode == "F":
        raise InputError("expected 8 or 16 bits a channel, got floating point")
    if image.mode == "CMYK":
        icc = None  # the profile describes inks that the result does not have
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA", "La")
    pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    alpha = pixels[..., 3].copy() if transparent else None
    return Picture(pixels[..., :3].copy(), alpha, grey, icc)


def _is_deep_colour(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        # Bytes 24 and 25 of a PNG: bit depth and colour type; type 0 (grey) Pillow reads itself.
        return data[24] == 16 and data[25] in (2, 4, 6)
    if image.format == "TIFF":
        depth = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
        return len(depth) >= 3 and max(depth) == 16
    return False


def _decode_deep(data: bytes, icc: bytes | None) -> Picture:
    import av

    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(video=0))
    name = frame.format.name
    if name.startswith("ya16"):
        frame = frame.reformat(format="rgba64le")
        pixels = frame.to_ndarray()
        return Picture(pixels[..., :3].copy(), pixels[..., 3].copy(), grey=True, icc=icc)
    transparent = name.startswith("rgba64")
    pixels = frame.reformat(format="rgba64le" if transparent else "rgb48le").to_ndarray()
    return Picture(pixels[..., :3].copy(), pixels[..., 3].copy() if transparent else None, icc=icc)


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


def _encode(suffix: str, picture: Picture) -> bytes:
    if picture.rgb.dtype == np.uint16 and not (picture.grey and picture.alpha is None):
        return _encode_deep(suffix, picture)
    if picture.rgb.dtype == np.uint16:
        image = Image.fromarray(np.ascontiguousarray(picture.rgb[..., 0]))
    elif picture.alpha is not None:
        planes = picture.rgb[..., :1] if picture.grey else picture.rgb
        image = Image.fromarray(np.concatenate([planes, picture.alpha[..., None]], axis=2))
    else:
        image = Image.fromarray(np.ascontiguousarray(picture.rgb[..., 0] if picture.grey else picture.rgb))
    options: dict[str, Any] = {"icc_profile": picture.icc} if picture.icc else {}
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}.get(suffix, suffix[1:].upper())
    if kind == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    elif kind == "WEBP":
        options |= {"lossless": True}
        image = image.convert("RGBA" if picture.alpha is not None else "RGB")
    elif kind == "TIFF":
        options |= {"compression": "tiff_lzw"}
    elif kind == "PNG":
        options |= {"compress_level": 3}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _encode_deep(suffix: str, picture: Picture) -> bytes:
    import av

    pixels, name = picture.rgb, "rgb48le"
    if picture.alpha is not None:
        pixels, name = np.concatenate([pixels, picture.alpha[..., None]], axis=2), "rgba64le"
    codec, pixel_format = ("png", name.replace("le", "be")) if suffix == ".png" else ("tiff", name)
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = pixels.shape[1], pixels.shape[0], pixel_format
    encoder.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=name).reformat(format=pixel_format)
    data = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    return _with_icc(data, picture.icc) if suffix == ".png" and picture.icc else data


def _with_icc(png: bytes, icc: bytes) -> bytes:
    """Put an iCCP chunk behind the header of a PNG."""
    body = b"iCCP" + b"ICC profile\0\0" + zlib.compress(icc)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    header_end = 8 + 25
    return png[:header_end] + chunk + png[header_end:]
