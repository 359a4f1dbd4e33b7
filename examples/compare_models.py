"""Put the bundled models side by side on the drawn scene: crops of bicubic, each model and the original.

    python examples/compare_models.py examples/models.png [WEIGHTS ...]

Without weights files these are the models that the package ships, the small one first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from draw_scene import scene
from PIL import Image, ImageDraw

from srgan_fast import Upscaler
from srgan_fast.resize import imresize_down, imresize_up

MODELS = ("srresnet_x4_small", "srresnet_x4")
# HR pixels: left, top of the crops; each is shown twice as large.
CROPS = ((300, 60), (620, 250), (180, 400), (560, 340))
SIZE, ZOOM, TITLE = 112, 2, 18


def main() -> None:
    out, models = Path(sys.argv[1]), sys.argv[2:] or MODELS
    hr = np.asarray(scene())
    planes = torch.from_numpy(hr.copy()).permute(2, 0, 1)
    lr = imresize_down(planes, 4)
    columns = {"bicubic": imresize_up(lr, 4).permute(1, 2, 0).numpy()}
    frame = lr.permute(1, 2, 0).numpy()
    for model in models:
        columns[Path(model).stem] = Upscaler(model, precision="fp32")(frame)
    columns["original"] = hr
    side = SIZE * ZOOM
    sheet = Image.new("RGB", (len(columns) * (side + 4) - 4, TITLE + len(CROPS) * (side + 4) - 4), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (name, picture) in enumerate(columns.items()):
        draw.text((x * (side + 4) + 4, 3), name, fill="black")
        for y, (left, top) in enumerate(CROPS):
            crop = Image.fromarray(picture[top : top + SIZE, left : left + SIZE])
            sheet.paste(crop.resize((side, side), Image.Resampling.NEAREST), (x * (side + 4), TITLE + y * (side + 4)))
    sheet.save(out)


if __name__ == "__main__":
    main()
