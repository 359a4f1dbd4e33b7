"""Draw the bundled clip: the camera pans over the drawn scene, gulls fly through it, and a bell buoy rings.

    python examples/draw_clip.py examples/clip.mp4

Pictures and sound are made by arithmetic, so that they carry nobody's copyright. Each frame is the HR one through the
MATLAB-style bicubic that the networks are trained on.
"""

from __future__ import annotations

import sys
from fractions import Fraction

import av
import numpy as np
import torch
from draw_scene import scene
from PIL import Image, ImageDraw

from srgan_fast.resize import imresize_down

WIDTH, HEIGHT, SCALE = 160, 96, 4
RATE, FRAMES, SOUND_HZ = 15, 30, 44100


def gull(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, beat: float) -> None:
    """Two wings about a body, up and down with the beat."""
    tip = size * 0.6 * np.sin(beat)
    for side in (-1, 1):
        draw.line([(x, y), (x + side * size * 0.5, y - size * 0.25), (x + side * size, y - tip)], (250, 250, 246), 3)


def frames() -> list[np.ndarray]:
    """LR frames, uint8 [h, w, 3]."""
    whole = scene()
    drawn = []
    for index in range(FRAMES):
        t = index / (FRAMES - 1)
        left = round((whole.width - WIDTH * SCALE) * (3 - 2 * t) * t**2)  # sets off gently, arrives gently
        top = round((whole.height - HEIGHT * SCALE) * 0.5 * t)
        view = whole.crop((left, top, left + WIDTH * SCALE, top + HEIGHT * SCALE))
        draw = ImageDraw.Draw(view)
        for bird in range(3):
            gull(draw, 560 - 330 * t - 70 * bird, 90 + 36 * bird - 30 * t, 26 - 5 * bird, 0.9 * index + 2 * bird)
        hr = torch.from_numpy(np.array(view.convert("RGB"))).permute(2, 0, 1)
        drawn.append(imresize_down(hr, SCALE).permute(1, 2, 0).contiguous().numpy())
    return drawn


def sound() -> np.ndarray:
    """A bell that is struck twice, float32 [samples] in -1..1."""
    time_s = np.arange(SOUND_HZ * FRAMES // RATE) / SOUND_HZ
    total = np.zeros_like(time_s)
    for struck_s in (0.15, 1.05):
        since_s = np.clip(time_s - struck_s, 0, None)
        for partial, loud in ((1.0, 0.5), (2.01, 0.25), (2.94, 0.16), (4.2, 0.08)):
            total += loud * np.sin(2 * np.pi * 392 * partial * since_s) * np.exp(-3 * partial * since_s) * (since_s > 0)
    return (0.6 * total).astype(np.float32)


def main() -> None:
    with av.open(sys.argv[1], "w") as file:
        video = file.add_stream("libx264", rate=RATE, options={"crf": "16", "preset": "slow"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        # What swscale makes of RGB by itself, said: BT.601, limited range.
        tags = video.codec_context
        tags.colorspace = tags.color_primaries = tags.color_trc = 6
        tags.color_range = 1
        audio = file.add_stream("aac", rate=SOUND_HZ, layout="mono")
        audio.bit_rate = 64000
        audio.metadata["language"] = "eng"
        file.metadata["title"] = "Gulls, drawn by srgan-fast"
        for index, rgb in enumerate(frames()):
            picture = av.VideoFrame.from_image(Image.fromarray(rgb))
            picture.pts, picture.time_base = index, Fraction(1, RATE)
            file.mux(video.encode(picture))
        file.mux(video.encode())
        wave = av.AudioFrame.from_ndarray(sound()[None], format="fltp", layout="mono")
        wave.sample_rate, wave.pts = SOUND_HZ, 0
        file.mux(audio.encode(wave))
        file.mux(audio.encode())


if __name__ == "__main__":
    main()
