"""Upscale the bundled picture, beside plain bicubic interpolation, and the bundled clip: `make demo` runs this."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from srgan_fast import Upscaler
from srgan_fast.errors import SRGANFastError
from srgan_fast.resize import imresize_up
from srgan_fast.video.job import upscale_video

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "demo-out"


def main() -> None:
    OUT.mkdir(exist_ok=True)
    picture()
    clip()


def picture() -> None:
    lr = np.array(Image.open(HERE / "scene_lr.png").convert("RGB"))
    upscaler = Upscaler("srresnet_x4")
    upscaler(lr[:16, :16])  # the first call of a process also sets up the convolution library
    start = time.perf_counter()
    sr = upscaler(lr)
    seconds = time.perf_counter() - start

    bicubic = imresize_up(torch.from_numpy(lr).permute(2, 0, 1), 4).permute(1, 2, 0).numpy()
    height, width = sr.shape[:2]
    before_after = np.hstack([bicubic[:, : width // 2], np.full((height, 4, 3), 255, np.uint8), sr[:, : width // 2]])
    Image.fromarray(sr).save(OUT / "scene_x4.png")
    Image.fromarray(before_after).save(OUT / "before_after.png")

    megapixels = height * width / 1e6
    print(f"result:       {OUT / 'scene_x4.png'}  ({lr.shape[1]}x{lr.shape[0]} -> {width}x{height})")
    print(f"before/after: {OUT / 'before_after.png'}  (left bicubic, right srresnet_x4)")
    print(f"backend:      {upscaler.backend_name}, {upscaler.precision}, on {upscaler.device}")
    print(f"speed:        {seconds:.2f} s a picture, {megapixels / seconds:.2f} megapixels of output a second")


def clip() -> None:
    print("\nthe clip, 30 frames with sound, by the small model ...")
    summary = upscale_video(HERE / "clip.mp4", OUT / "clip_x4.mp4", Upscaler("srresnet_x4_small"))
    for line in summary.lines():
        print(line)


if __name__ == "__main__":
    try:
        main()
    except SRGANFastError as error:
        sys.exit(f"demo: {error}")
