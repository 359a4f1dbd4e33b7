"""Frames of the decoder to planes with their meaning, and planes to frames for an encoder: nothing is converted.

Whatever FFmpeg can decode comes in some pixel format; here it becomes planar y, u, v, or y alone, or red, green, blue.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np
from av.codec.codec import PixFmtLoss, find_best_pix_fmt_of_list
from numpy.typing import NDArray

from srgan_fast.video.colour import MATRIX_OF, NEAREST, Colour, Matrix, Siting, Subsampling, guess_matrix

Note = Callable[[str], None]

_PLANAR = re.compile(r"(?:yuv(?:a|j)?(420|422|444)p|gray|gbra?p)(9|10|12|14|16)?(?:le)?")
_CANDIDATES = [
    *(f"yuv{less}p{bits}" for less in ("420", "422", "444") for bits in ("", "9le", "10le", "12le", "16le")),
    *(f"gray{bits}" for bits in ("", "10le", "12le", "16le")),
    *(f"gbrp{bits}" for bits in ("", "10le", "12le", "16le")),
]
# Luma as it is, chroma interleaved; the ten bits of P010 are the high ones.
_SEMIPLANAR = {"nv12": 0, "p010le": 6}
_BICUBIC = 4
_MORE_CHROMA = 64  # of FFmpeg's losses: the format has more chroma than the frame

# Where chroma lies when nothing says so: JPEG and MPEG-1 put it in the middle, all others on the left.
_CENTRED = frozenset({"mjpeg", "mpeg1video"})
# How much FFmpeg tells is one setting of the process.
_LEVEL = threading.Lock()
_SITINGS: dict[str, Siting] = {"left": "left", "center": "centre", "topleft": "topleft"}


def planes_of(frame: Any, size: tuple[int, int], note: Note) -> tuple[NDArray[Any], ...]:
    """The planes of a decoded frame, which stay valid when the frame is gone.

    Shapes:  [h, w] each; `size` is (width, height), to which a frame of another size is brought
    Dtypes:  uint8, or uint16 with the low bits of the format
    """
    if (frame.width, frame.height) != size:
        note(f"the size changes to {frame.width}x{frame.height}: such frames are brought to {size[0]}x{size[1]}")
        frame = frame.reformat(*size, format=_plain(frame.format, note), interpolation=_BICUBIC)
    name = frame.format.name
    if len(frame.format.components) in (2, 4):
        note("transparency is dropped")
    if name in _SEMIPLANAR:
        size_of = 2 if name == "p010le" else 1
        y, uv = (
            _array(plane, size_of, values) >> _SEMIPLANAR[name]
            for plane, values in zip(frame.planes, (1, 2), strict=True)
        )
        return y, np.ascontiguousarray(uv[:, 0::2]), np.ascontiguousarray(uv[:, 1::2])
    plain = _plain(frame.format, note)
    if plain != name:
        frame = frame.reformat(format=plain)
    count = 1 if plain.startswith("gray") else 3
    arrays = [_array(plane, 2 if plain.endswith("le") else 1) for plane in frame.planes[:count]]
    # FFmpeg has green first.
    return (arrays[2], arrays[0], arrays[1]) if plain.startswith("gb") else tuple(arrays)


def colour_of(frame: Any, codec: str, siting: Siting, matrix: Matrix | None, note: Note) -> Colour:
    """What the planes of a decoded frame mean; `matrix` is what the user says."""
    plain = "yuv420p10le" if frame.format.name == "p010le" else _plain(frame.format, lambda _: None)
    if frame.format.name == "nv12":
        plain = "yuv420p"
    match = _PLANAR.fullmatch(plain)
    assert match is not None
    depth = int(match[2] or 8)
    primaries, transfer, code = int(frame.color_primaries), int(frame.color_trc), int(frame.colorspace)
    if plain.startswith("gb"):
        return Colour("rgb", True, depth, "444", "left", primaries, transfer)
    # Grey that says nothing is full range, as FFmpeg reads and writes it; in H.264 it is video all the same.
    silent = int(frame.color_range) == 0 and match[1] is None and codec != "h264"
    full = int(frame.color_range) == 2 or plain.startswith("yuvj") or silent
    subsampling: Subsampling = "400" if match[1] is None else match[1]  # type: ignore[assignment]
    tagged = code in MATRIX_OF or code in NEAREST
    if matrix is None:
        if code in NEAREST:
            matrix, spoken = NEAREST[code]
            note(f"the matrix {spoken} is read as {matrix}")
        elif code in MATRIX_OF and code != 0:
            matrix = MATRIX_OF[code]
        else:
            matrix, tagged = guess_matrix(frame.width, frame.height), False
    return Colour(matrix, full, depth, subsampling, siting, primaries, transfer, tagged)


def siting_of(frame: Any, codec: str, note: Note) -> Siting:
    """Where chroma lies; of all of FFmpeg that PyAV has, only a filter that prints frames tells it."""
    graph = av.filter.Graph()
    shape = {"width": frame.width, "height": frame.height, "format": frame.format, "time_base": frame.time_base}
    source, show, sink = graph.add_buffer(**shape), graph.add("showinfo", checksum="0"), graph.add("buffersink")
    source.link_to(show)
    show.link_to(sink)
    graph.configure()
    with _LEVEL:
        before = av.logging.get_level()
        av.logging.set_level(av.logging.INFO)
        try:
            with av.logging.Capture() as lines:
                graph.push(frame)
                graph.pull()
        finally:
            av.logging.set_level(before)
    found = re.search(r" cl:(\S+)", "".join(text for _, _, text in lines))
    where = found[1] if found else "unspecified"
    if where in _SITINGS:
        return _SITINGS[where]
    default: Siting = "centre" if codec in _CENTRED else "left"
    if where not in ("unspecified", "unknown"):
        default = "left" if where == "bottomleft" else "centre"
        note(f"the chroma position {where} is read as {default}")
    return default


def frame_from(planes: Sequence[NDArray[Any]], name: str, neutral: int) -> Any:
    """A frame of the planar format `name` that holds a copy of planes; those that are missing become `neutral`."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, name)
    for index, plane in enumerate(frame.planes):
        array = _array(plane, 2 if name.endswith("le") else 1)
        array[:] = planes[index] if index < len(planes) else neutral
    return frame


def _array(plane: Any, itemsize: int, values: int = 1) -> NDArray[Any]:
    """The pixels of a plane, of so many values each, without the padding of its lines; the array keeps them alive."""
    dtype: Any = np.uint8 if itemsize == 1 else np.uint16
    stride = abs(plane.line_size) // itemsize
    lines = np.frombuffer(plane, dtype)[: plane.height * stride].reshape(plane.height, stride)
    return (lines if plane.line_size > 0 else lines[::-1].copy())[:, : plane.width * values]


def _plain(format: Any, note: Note) -> str:
    """The planar format that holds the most of another."""
    if _PLANAR.fullmatch(format.name):
        return str(format.name)
    best, loss = find_best_pix_fmt_of_list(_CANDIDATES, format, has_alpha=False)
    assert best is not None
    if loss & (PixFmtLoss.RESOLUTION | PixFmtLoss.COLORSPACE | PixFmtLoss.DEPTH | _MORE_CHROMA):
        note(f"the pixel format {format.name} is read as {best.name}")
    return str(best.name)
