"""Frames of a video by OpenCV, upscaled, and written again: python with_opencv.py IN.mp4 OUT.mp4 [MODEL]

OpenCV has blue first, drops sound and timestamps, and on Linux has no x264; for a file take `srgan-fast upscale`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import cv2
import numpy as np

from srgan_fast import Upscaler


def frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        there, frame = video.read()
        if not there:
            return
        yield frame


source, target, *model = sys.argv[1:]
upscaler = Upscaler(*model)
video = cv2.VideoCapture(source)
if not video.isOpened():
    sys.exit(f"cannot read {source}")
width, height = (
    int(video.get(side)) * upscaler.scale for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
)
out = cv2.VideoWriter(target, cv2.VideoWriter.fourcc(*"mp4v"), video.get(cv2.CAP_PROP_FPS), (width, height))
for bgr in upscaler.stream(frames(video), color="bgr"):
    out.write(bgr)
out.release()
