"""How videos are upscaled elsewhere, with the same upscaler: picture files for every frame, or OpenCV's loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from srgan_fast.errors import OutputError
from srgan_fast.upscaler import Upscaler

# The fastest that zlib has: what tools that write a picture a frame choose.
_COMPRESS_LEVEL = 1

Settings = Mapping[str, str]


def through_files(source: Path, target: Path, upscaler: Upscaler, settings: Settings) -> None:
    """Every frame to a PNG, every PNG to a larger one, all of these to a video by x264: three passes, one by one."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        small.mkdir()
        large.mkdir()
        with av.open(str(source)) as file:
            rate = file.streams.video[0].average_rate
            for index, frame in enumerate(file.decode(video=0)):
                _save(frame.to_ndarray(format="rgb24"), small / f"{index:06}.png")
        names = sorted(path.name for path in small.iterdir())
        for name in names:
            _save(upscaler(_read(small / name), layout="HWC"), large / name)
        with av.open(str(target), "w") as file:
            stream: Any = file.add_stream("libx264", rate=rate, options=dict(settings))
            stream.pix_fmt = "yuv420p"
            for index, name in enumerate(names):
                pixels = _read(large / name)
                if index == 0:
                    stream.height, stream.width = pixels.shape[:2]
                file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            file.mux(stream.encode())


def through_opencv(source: Path, target: Path, upscaler: Upscaler, settings: Settings) -> None:
    """Read, upscale, write, one frame after another; by MPEG-4, as OpenCV's wheels have no x264.

    Raises:  OutputError where it opens no encoder
    """
    cv2: Any = import_module("cv2")
    capture, writer = cv2.VideoCapture(str(source)), None
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            larger = upscaler(frame, layout="HWC", color="bgr")
            if writer is None:
                height, width = larger.shape[:2]
                fourcc = cv2.VideoWriter_fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(target), fourcc, capture.get(cv2.CAP_PROP_FPS), (width, height))
                if not writer.isOpened():
                    raise OutputError(f"OpenCV opens no MPEG-4 encoder for {target.name}; leave --peers out")
            writer.write(larger)
    finally:
        capture.release()
        if writer is not None:
            writer.release()


def _why_no_opencv() -> str | None:
    return None if find_spec("cv2") else "OpenCV is not installed: pip install opencv-python-headless"


def _save(pixels: Any, path: Path) -> None:
    Image.fromarray(pixels).save(path, compress_level=_COMPRESS_LEVEL)


def _read(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# By name: why a way is not here, or None, and the way.
WAYS: dict[str, tuple[Callable[[], str | None], Callable[[Path, Path, Upscaler, Settings], None]]] = {
    "png": (lambda: None, through_files),
    "opencv": (_why_no_opencv, through_opencv),
}
