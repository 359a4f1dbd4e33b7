"""The protocols against numbers from other implementations, literal loops, and the published scores of bicubic."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from srgan_fast.errors import ShapeError, UsageError
from srgan_fast.evaluate import daala
from srgan_fast.evaluate.metrics import PROTOCOLS, luma601, protocols, psnr_db, score, ssim
from srgan_fast.image import read_rgb
from srgan_fast.resize import imresize_down, imresize_up, nearest_up


def drawn(height: int, width: int) -> Tensor:
    """A picture that any implementation can draw again: smooth ramps, edges and a texture."""
    y, x = np.mgrid[0:height, 0:width]
    red = (7 * x + 3 * y) % 256
    green = 40 + 150 * ((x // 9 + y // 7) % 2) + (x * y) % 31
    blue = (x * x + 2 * y * y) // 11 % 256
    return torch.from_numpy(np.stack([red, green, blue]).astype(np.uint8))


def noisy(image: Tensor) -> Tensor:
    y, x = np.mgrid[0 : image.shape[1], 0 : image.shape[2]]
    noise = np.stack([(5 * x + 11 * y + 7 * c) % 23 - 11 for c in range(3)])
    return torch.from_numpy(np.clip(image.numpy().astype(np.int64) + noise, 0, 255).astype(np.uint8))


Y601 = (38.445690114780106, 0.9945462172079703)
RGB = (31.746337717407776, 0.9423984583661756)


def test_numbers_of_another_implementation() -> None:
    # Computed once with scipy 1.17: ndimage.correlate1d in float64 and the 5-pixel margin cut off.
    hr = drawn(52, 47)
    sr = noisy(hr)
    for name, (psnr, similarity) in {"y601": Y601, "rgb": RGB}.items():
        found = score(hr, sr, name, 4)
        assert found.psnr_db == pytest.approx(psnr, abs=1e-9)
        assert found.ssim == pytest.approx(similarity, abs=1e-12)


def test_luma_of_black_and_white() -> None:
    image = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2)
    assert luma601(image).flatten().tolist() == pytest.approx([16.0, 235.0])


def test_psnr_by_hand() -> None:
    a = torch.zeros(1, 2, 2, dtype=torch.float64)
    b = a.clone()
    b[0, 0, 0] = 10
    assert psnr_db(a, b) == pytest.approx(10 * math.log10(255**2 / 25))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_image_equals_itself(name: str) -> None:
    image = drawn(24, 31)
    found = score(image, image, name, 4)
    assert found.psnr_db == math.inf
    assert found.ssim == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_border_does_not_count(name: str) -> None:
    hr = drawn(30, 29)
    sr = noisy(hr)
    other = torch.zeros_like(sr)
    other[:, 4:-4, 4:-4] = sr[:, 4:-4, 4:-4]
    assert score(hr, sr, name, 4) == score(hr, other, name, 4)
    assert score(hr, sr, name, 4) != score(hr, sr, name, 3)


def test_bad_images() -> None:
    image = drawn(30, 30)
    with pytest.raises(ShapeError, match="uint8"):
        score(image.float(), image, "y601", 4)
    with pytest.raises(ShapeError, match="one size"):
        score(image, drawn(30, 31), "y601", 4)
    with pytest.raises(ShapeError, match="at least 19"):
        score(drawn(18, 30), drawn(18, 30), "paper", 4)
    with pytest.raises(UsageError, match="y601, paper, rgb"):
        score(image, image, "ycbcr", 4)
    with pytest.raises(UsageError, match="got none"):
        protocols([])
    with pytest.raises(ShapeError, match="11x11"):
        ssim(torch.zeros(1, 10, 20), torch.zeros(1, 10, 20))
    assert protocols(["rgb", "y601", "rgb"]) == ["rgb", "y601"]


# The paper's protocol, step by step in exact arithmetic.


class Kiss:
    """Marsaglia's generator, one number at a time."""

    def __init__(self) -> None:
        self.z, self.w, self.shr, self.cong = 362436069, 521288629, 123456789, 380116160

    def draw(self) -> int:
        word = 2**32
        self.z = 36969 * (self.z % 65536) + self.z // 65536
        self.w = 18000 * (self.w % 65536) + self.w // 65536
        self.shr ^= self.shr << 17
        self.shr %= word
        self.shr ^= self.shr >> 13
        self.shr ^= self.shr << 5
        self.shr %= word
        self.cong = (69069 * self.cong + 1234567) % word
        return ((((self.z << 16) + self.w) % word ^ self.cong) + self.shr) % word

    def triangle(self, largest: int) -> int:
        size = largest + 1
        pair: list[int] = []
        while len(pair) < 2:
            number = self.draw()
            if number < (2**32 - 1) // size * size:
                pair.append(number % size)
        return pair[0] - pair[1]


def nearest_integer(x: Fraction) -> int:
    return int(math.copysign(math.floor(abs(x) + Fraction(1, 2)), x))


def literal_luma(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    kr, kg, kb = Fraction(2126, 10000), Fraction(7152, 10000), Fraction(722, 10000)
    y_step, c_step = Fraction(65535, 219), Fraction(65535, 224)
    matrix = [
        (Fraction(0), 2 - 2 * kr),
        (-kb * (2 - 2 * kb) / kg, -kr * (2 - 2 * kr) / kg),
        (2 - 2 * kb, Fraction(0)),
    ]
    kiss, out = Kiss(), np.zeros((height, width), np.uint8)
    for top in range(0, height, 2):
        for left in range(0, width, 2):
            drawn_here = [[kiss.triangle(n) for n in (1223320000, 1479548743, 1255654969)] for _ in range(4)]
            cb_dither = Fraction(drawn_here[0][1], 1479548743) * c_step
            cr_dither = Fraction(drawn_here[0][2], 1255654969) * c_step
            pixels = {}
            for index, (dy, dx) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                if top + dy < height and left + dx < width:
                    y_dither = Fraction(drawn_here[index][0], 1223320000) * y_step
                    pixels[dy, dx] = [
                        int(image[top + dy, left + dx, c]) * 257
                        + nearest_integer(y_dither + abs(matrix[c][0]) * cb_dither + abs(matrix[c][1]) * cr_dither)
                        for c in range(3)
                    ]
            corners = []
            for dy, dx in [(0, 0), (0, 1), (1, 0), (1, 1)]:
                dy = dy if (dy, 0) in pixels else 0
                dx = dx if (0, dx) in pixels else 0
                corners.append(pixels[dy, dx])
            red, green, blue = (Fraction(sum(corner[c] for corner in corners), 4) for c in range(3))
            grey = kr * red + kg * green + kb * blue
            cb = min(max(nearest_integer((blue - grey) / (2 - 2 * kb) / c_step), -128), 127)
            cr = min(max(nearest_integer((red - grey) / (2 - 2 * kr) / c_step), -128), 127)
            chroma = [c_step * (row[0] * cb + row[1] * cr) for row in matrix]
            for (dy, dx), rgb in pixels.items():
                wanted = sum(k * (v - c) for k, v, c in zip((kr, kg, kb), rgb, chroma, strict=True)) / y_step
                low = min(max(math.floor(wanted), -16), 238)
                errors = []
                for y in (low, low + 1):
                    shown = [min(max(nearest_integer(y_step * y + c), 0), 65535) for c in chroma]
                    errors.append(sum((a - b) ** 2 for a, b in zip(rgb, shown, strict=True)))
                up = errors[1] < errors[0] or (errors[0] == errors[1] and low % 2 == 1)
                out[top + dy, left + dx] = low + up + 16
    return out


def test_kiss99_is_the_sequential_generator() -> None:
    kiss = Kiss()
    assert daala.kiss99(3000).tolist() == [kiss.draw() for _ in range(3000)]


@pytest.mark.parametrize(("height", "width"), [(12, 16), (7, 10), (8, 9), (11, 5), (1, 1)])
def test_paper_luma_is_the_literal_one(height: int, width: int) -> None:
    generator = np.random.default_rng(height * width)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2] = image[0, 0]  # flat, and with extremes elsewhere
    image[-1] = generator.choice(np.array([0, 255], dtype=np.uint8), (width, 3))
    np.testing.assert_array_equal(daala.luma(image), literal_luma(image))


def literal_ssim(a: np.ndarray, b: np.ndarray) -> float:
    height, width = a.shape
    sigma = 1.5 * height / 256
    reach = math.floor(sigma * math.sqrt(-2 * math.log(math.sqrt(math.pi / 2) * sigma / 256)))
    side = [
        math.floor(256 / (sigma * math.sqrt(2 * math.pi)) * math.exp(-(c**2) / (2 * sigma**2)) + 0.5)
        for c in range(1, reach + 1)
    ]
    taps = {0: 256 - 2 * sum(side)} | {sign * c: side[c - 1] for c in range(1, reach + 1) for sign in (-1, 1)}
    total = weights = 0.0
    for y in range(height):
        for x in range(width):
            w = mx = my = mxx = myy = mxy = 0
            for dy, v in taps.items():
                for dx, u in taps.items():
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        p, q = int(a[y + dy, x + dx]), int(b[y + dy, x + dx])
                        w, mx, my = w + u * v, mx + u * v * p, my + u * v * q
                        mxx, myy, mxy = mxx + u * v * p * p, myy + u * v * q * q, mxy + u * v * p * q
            c1, c2 = 2.55**2 * w * w, 7.65**2 * w * w
            top = (2 * mx * my + c1) * (2 * (mxy * w - mx * my) + c2)
            total += w * top / ((mx * mx + my * my + c1) * (mxx * w - mx * mx + myy * w - my * my + c2))
            weights += w
    return total / weights


def test_paper_ssim_is_the_literal_one() -> None:
    generator = np.random.default_rng(5)
    a = generator.integers(16, 236, (70, 24), dtype=np.uint8)
    b = np.clip(a + generator.integers(-30, 31, a.shape), 16, 235).astype(np.uint8)
    assert daala.ssim(a, b) == pytest.approx(literal_ssim(a, b), abs=1e-12)


@pytest.mark.parametrize(("height", "taps"), [(504, 17), (280, 11), (248, 9)])
def test_the_window_grows_with_the_height(height: int, taps: int) -> None:
    window = daala.window(height, height - 1)
    assert len(window) == taps
    assert window.sum() == 256
    np.testing.assert_array_equal(window, window[::-1])


def test_set5_has_the_published_scores(shared_data: Path) -> None:
    # Nearest and bicubic of Table 2 for `paper`; y601 as measured with MATLAB's own LR files.
    folder = shared_data / "Set5"
    if not folder.is_dir():
        pytest.skip(f"no Set5 in {shared_data}")
    scores: dict[str, list[tuple[float, float]]] = {"bicubic y601": [], "bicubic paper": [], "nearest paper": []}
    for path in sorted(folder.glob("*.png")):
        hr = read_rgb(path)
        height, width = (side // 4 * 4 for side in hr.shape[1:])
        hr = hr[:, :height, :width]
        lr = imresize_down(hr, 4)
        for key, found in scores.items():
            method, protocol = key.split()
            sr = imresize_up(lr, 4) if method == "bicubic" else nearest_up(lr, 4)
            found.append(score(hr, sr, protocol, 4))
    mean = {key: tuple(np.mean(found, axis=0)) for key, found in scores.items()}
    assert mean["bicubic y601"] == (pytest.approx(28.430, abs=0.001), pytest.approx(0.8111, abs=0.0001))
    assert mean["bicubic paper"] == (pytest.approx(28.4261, abs=0.0001), pytest.approx(0.8211, abs=0.0001))
    assert mean["nearest paper"] == (pytest.approx(26.2601, abs=0.0001), pytest.approx(0.7552, abs=0.0001))
