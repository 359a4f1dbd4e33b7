"""Draw the bundled picture: a scene made by arithmetic, so that it carries nobody's copyright.

    python examples/draw_scene.py examples/scene_hr.png examples/scene_lr.png

The LR picture is the HR one through the MATLAB-style bicubic that the networks are trained on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from srgan_fast.resize import imresize_down

WIDTH, HEIGHT, OVERSAMPLING = 960, 544, 2


def fractal_noise(rng: np.random.Generator, width: int, height: int, coarsest: int) -> np.ndarray:
    """Octaves of smooth noise in 0..1, float [height, width]."""
    total, weight = np.zeros((height, width)), 0.0
    cells, amplitude = coarsest, 1.0
    while cells < width // 2:
        grid = Image.fromarray(rng.random((cells * height // width + 2, cells + 2)).astype(np.float32))
        total += amplitude * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        weight += amplitude
        cells, amplitude = cells * 2, amplitude * 0.55
    return np.clip(total / weight, 0, 1)


def shade(low: tuple[int, int, int], high: tuple[int, int, int], t: np.ndarray) -> np.ndarray:
    """A colour ramp: t [h, w] -> [h, w, 3]."""
    return np.asarray(low) * (1 - t[..., None]) + np.asarray(high) * t[..., None]


def branch(draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, angle: float, size: float) -> None:
    """A twig that forks until it is too short to see."""
    if size < 7:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(52 + int(rng.integers(40)), 92 + int(rng.integers(50)), 40))
        return
    to_x, to_y = x + size * np.cos(angle), y - size * np.sin(angle)
    draw.line((x, y, to_x, to_y), fill=(58, 42, 34), width=max(1, int(size / 9)))
    for turn in (-0.45, 0.38):
        branch(draw, rng, to_x, to_y, angle + turn + rng.normal(0, 0.12), size * (0.72 + rng.normal(0, 0.04)))


def scene() -> Image.Image:
    """A tower of bricks by the sea at dusk, with a tree and a name plate."""
    rng = np.random.default_rng(7)
    width, height = WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING
    horizon = height * 62 // 100
    rows = np.linspace(0, 1, horizon)[:, None] * np.ones((1, width))
    sky = shade((44, 70, 128), (250, 176, 122), rows**1.6)
    clouds = np.clip((fractal_noise(rng, width, horizon, 5) - 0.5) * 4, 0, 1)
    sky = sky * (1 - 0.55 * clouds[..., None]) + np.asarray((250, 226, 214)) * 0.55 * clouds[..., None]
    ripples = fractal_noise(rng, width, (height - horizon) * 4, 60)[::4]
    sea = shade((20, 44, 66), (214, 150, 118), np.clip((ripples - 0.35) * 2.4, 0, 1))
    picture = Image.fromarray(np.vstack([sky, sea]).astype(np.uint8))
    draw = ImageDraw.Draw(picture)

    ridge = fractal_noise(rng, width, 8, 4)[0]
    draw.polygon(
        [(0, horizon), *((x, horizon - int(150 * ridge[x])) for x in range(0, width, 2)), (width, horizon)],
        fill=(58, 62, 88),
    )
    left, right, top, base = width * 20 // 100, width * 38 // 100, height * 12 // 100, height * 86 // 100
    draw.rectangle((left, top, right, base), fill=(92, 74, 66))
    brick_w, brick_h = 40, 18
    for row, y in enumerate(range(top, base, brick_h)):
        for x in range(left - (row % 2) * brick_w // 2, right, brick_w):
            tone = int(rng.integers(-22, 22))
            box = (max(left, x) + 1, y + 1, min(right, x + brick_w) - 2, y + brick_h - 2)
            if box[2] > box[0]:
                draw.rectangle(box, fill=(168 + tone, 92 + tone // 2, 70 + tone // 2))
    for floor in range(4):
        y = top + 70 + floor * 170
        for x in (left + 60, right - 140):
            draw.rectangle((x, y, x + 80, y + 96), fill=(36, 32, 40))
            draw.pieslice((x, y - 40, x + 80, y + 40), 180, 360, fill=(36, 32, 40))
            for bar in range(1, 4):
                draw.line((x + bar * 20, y - 30, x + bar * 20, y + 96), fill=(230, 196, 120), width=3)
            draw.line((x, y + 32, x + 80, y + 32), fill=(230, 196, 120), width=3)
    draw.rectangle((left - 24, top - 26, right + 24, top), fill=(120, 62, 52))
    draw.polygon([(left - 24, top - 26), (right + 24, top - 26), ((left + right) // 2, 6)], fill=(104, 44, 44))

    grass = fractal_noise(rng, width, 8, 3)[0]
    ground = [(x, base - 20 - int(60 * grass[x])) for x in range(0, width, 4)]
    draw.polygon([(0, height), *ground, (width, height)], fill=(46, 62, 38))
    for _ in range(5200):
        x, y = int(rng.integers(width)), int(rng.integers(base - 60, height))
        tone = int(rng.integers(60))
        draw.line((x, y, x + int(rng.integers(-9, 9)), y - int(rng.integers(8, 34))), fill=(50 + tone, 76 + tone, 40))
    branch(draw, rng, width * 0.78, base + 20, np.pi / 2, 190)
    plate = (width * 46 // 100, base - 170, width * 64 // 100, base - 60)
    draw.rectangle(plate, fill=(240, 232, 214), outline=(60, 50, 44), width=6)
    for line in range(4):
        draw.line((plate[0] + 24, plate[1] + 26 + line * 20, plate[2] - 24 - line * 30, plate[1] + 26 + line * 20),
                  fill=(60, 50, 44), width=5)  # fmt: skip
    picture = picture.filter(ImageFilter.GaussianBlur(0.6))
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX)


def main() -> None:
    hr_path, lr_path = Path(sys.argv[1]), Path(sys.argv[2])
    picture = scene()
    picture.save(hr_path)
    hr = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    lr = imresize_down(hr, 4).permute(1, 2, 0).numpy()
    Image.fromarray(lr).save(lr_path)


if __name__ == "__main__":
    main()
