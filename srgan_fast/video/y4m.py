"""YUV4MPEG2: video without compression, as ffmpeg, x264 and VapourSynth write it into pipes and read it from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO, Literal

import torch
from torch import Tensor

from srgan_fast.errors import InputError
from srgan_fast.reuse import Reuse
from srgan_fast.video.colour import Colour, Matrix, Siting, Subsampling, from_rgb, guess_matrix, to_rgb

if TYPE_CHECKING:
    from srgan_fast.upscaler import Upscaler

_MAGIC = b"YUV4MPEG2"
_CURE = "make it with: ffmpeg -i IN -f yuv4mpegpipe -strict -1 -"
# Longer lines than this are no headers; frames of more pixels a side are no video.
_LONGEST_LINE = 4096
_MOST_PIXELS = 1 << 15
_SITINGS: dict[str, Siting] = {"jpeg": "centre", "": "centre", "mpeg2": "left", "paldv": "topleft"}
_SPACE = re.compile(r"(?:(420)(jpeg|mpeg2|paldv|)|(420|422|444)p(10|12|16)|(422|444)|mono(10|12|16|))")


@dataclass(frozen=True)
class Header:
    """What a stream says of itself; `words` are those of its first line, as they came."""

    width: int
    height: int
    colour: Colour
    words: tuple[str, ...]

    @property
    def planes(self) -> list[tuple[int, int]]:
        """Height and width of each plane; those of chroma are rounded up."""
        luma = self.height, self.width
        across, down = {"420": (2, 2), "422": (2, 1)}.get(self.colour.subsampling, (1, 1))
        chroma = -(-self.height // down), -(-self.width // across)
        return [luma] if self.colour.subsampling == "400" else [luma, chroma, chroma]

    def line(self, scale: int) -> bytes:
        """The first line of the same video, `scale` times larger."""
        larger = {"W": f"W{self.width * scale}", "H": f"H{self.height * scale}"}
        words = (larger.get(word[0], word) for word in self.words)
        return " ".join([_MAGIC.decode(), *words]).encode() + b"\n"


@dataclass
class Summary:
    """What became of a stream."""

    frames: int = 0
    saved: float = 0.0
    notes: list[str] = field(default_factory=list)


def read_header(source: BinaryIO, matrix: Matrix | None = None) -> Header:
    """The first line of a stream. It cannot say a matrix: that is guessed from the size where `matrix` is None.

    Raises:  InputError for what is not y4m, or is y4m of a kind that is not known
    """
    line = source.readline(_LONGEST_LINE)
    if not line:
        raise InputError(f"expected y4m video, got nothing; {_CURE}")
    if not line.startswith(_MAGIC + b" ") or not line.endswith(b"\n"):
        raise InputError(f"expected y4m video, which begins with {_MAGIC.decode()}, got {line[:16]!r}; {_CURE}")
    words = tuple(line.decode("ascii", "replace").split()[1:])
    said = {word[0]: word[1:] for word in words if word[0] != "X"}
    try:
        width, height = int(said["W"]), int(said["H"])
    except (KeyError, ValueError):
        width = height = 0
    if not (0 < width <= _MOST_PIXELS and 0 < height <= _MOST_PIXELS):
        size = f"W{said.get('W', '')} H{said.get('H', '')}"
        raise InputError(f"expected a y4m header with W and H of 1 to {_MOST_PIXELS}, got {size}; {_CURE}")
    colour = _colour(said.get("C", "420jpeg"), "XCOLORRANGE=FULL" in words, matrix or guess_matrix(width, height))
    return Header(width, height, replace(colour, tagged=matrix is not None), words)


def read_frames(source: BinaryIO, header: Header) -> Iterator[tuple[Tensor, ...]]:
    """The planes of each frame: uint8, or uint16 with the low `depth` bits, in memory of their own.

    Raises:  InputError for a frame that is cut off, or where no frame begins
    """
    dtype = torch.uint8 if header.colour.depth == 8 else torch.uint16
    sizes = [height * width * dtype.itemsize for height, width in header.planes]
    count = 0
    while line := source.readline(_LONGEST_LINE):
        if not line.startswith(b"FRAME") or not line.endswith(b"\n"):
            raise InputError(
                f"expected frame {count + 1} to begin with FRAME, got {line[:16]!r}; the stream is damaged"
            )
        data = bytearray(sum(sizes))
        got = _fill(source, data)
        if got < len(data):
            raise InputError(f"frame {count + 1} is cut off: expected {len(data)} bytes, got {got}")
        count += 1
        flat = torch.split(torch.frombuffer(data, dtype=dtype), [size // dtype.itemsize for size in sizes])
        yield tuple(plane.view(shape) for plane, shape in zip(flat, header.planes, strict=True))


def upscale(
    source: BinaryIO,
    target: BinaryIO,
    header: Header,
    upscaler: Upscaler,
    *,
    reuse: Literal["auto", "off"] = "auto",
    summary: Summary | None = None,
) -> Summary:
    """Upscale the frames behind a header into a stream of the same format, as long as there are any.

    `summary` is filled as frames are written, for a caller who has to say after an error how many there were.

    Raises:  InputError if there are no frames or one is cut off: those before it are written
    """
    summary = Summary() if summary is None else summary
    if not header.colour.tagged and header.colour.subsampling != "400":
        summary.notes.append(f"y4m does not say its matrix: {header.colour.matrix} by the size")
    if any(word in ("It", "Ib", "Im") for word in header.words):
        summary.notes.append("the frames are interlaced, and were upscaled as they are")
    colour, again = header.colour, Reuse(upscaler, reuse, shared=True)
    device = upscaler.device
    rgb = (to_rgb([each.to(device) for each in planes], colour) for planes in read_frames(source, header))
    last: tuple[Tensor, list[bytes]] | None = None
    try:
        for hr in upscaler.stream(rgb, layout="HWC", reuse=again):
            if last is None:
                target.write(header.line(upscaler.scale))
            # The same memory is the same picture: results are shared, and nobody writes into them.
            if last is None or last[0].data_ptr() != hr.data_ptr():
                last = hr, [plane.cpu().contiguous().numpy().tobytes() for plane in from_rgb(hr, colour)]
            target.write(b"FRAME\n")
            for plane in last[1]:
                target.write(plane)
            summary.frames += 1
        target.flush()
    finally:
        summary.saved = again.saved
        again.forget()
        if again.reason and reuse == "auto":
            summary.notes.append(f"every frame that changed was computed whole: {again.reason}")
    if not summary.frames:
        raise InputError(f"expected frames after the y4m header, got none; {_CURE}")
    return summary


def _colour(space: str, full: bool, matrix: Matrix) -> Colour:
    match = _SPACE.fullmatch(space)
    if match is None:
        raise InputError(
            f"expected y4m of 420, 422, 444 or mono with 8, 10, 12 or 16 bits, got {space};"
            " convert it with ffmpeg's -pix_fmt, such as yuv420p"
        )
    eight, siting, deep, depth, plain, mono = match.groups()
    bits = {"10": 10, "12": 12, "16": 16}.get(depth or mono or "", 8)
    known: dict[str, Subsampling] = {"420": "420", "422": "422", "444": "444"}
    subsampling = known.get(eight or deep or plain or "", "400")
    return Colour(matrix, full, bits, subsampling, _SITINGS[siting] if eight else "left")


def _fill(source: BinaryIO, data: bytearray) -> int:
    """Read until the buffer is full or the stream ends; returns how many bytes came."""
    view, got = memoryview(data), 0
    while got < len(data) and (count := source.readinto(view[got:])):  # type: ignore[attr-defined]
        got += count
    return got
