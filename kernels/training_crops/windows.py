"""The squares that crops are made of, out of images as bytes: as views on a CPU, by one gather on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def windows(pixels: Tensor, table: Tensor, draws: Tensor, size: int, reach: int = 0) -> Tensor:
    """Squares of `size` with `reach` around them, turned; outside of an image its border pixel: uint8 [b, 3, s, s]."""
    return (gathered if pixels.is_cuda else sliced)(pixels, table, draws, size, reach)


def sliced(pixels: Tensor, table: Tensor, draws: Tensor, size: int, reach: int) -> Tensor:
    """`windows` one by one, which a CPU does in a fraction of the time of a gather."""
    wide = size + 2 * reach
    out = pixels.new_empty(len(draws), 3, wide, wide)
    images = table[draws[:, 0]].tolist()
    for window, (start, height, width), (_, y, x, turn) in zip(out, images, draws.tolist(), strict=True):
        image = pixels[start : start + 3 * height * width].view(3, height, width)
        square = cut(image, y - reach, x - reach, wide).rot90(turn % 4, (1, 2))
        window.copy_(square.flip(2) if turn >= 4 else square)
    return out


def cut(image: Tensor, y: int, x: int, size: int) -> Tensor:
    """A square of an image that may reach over its border, where the border pixel repeats; a view if it does not."""
    height, width = image.shape[1:]
    top, left = max(0, -y), max(0, -x)
    bottom, right = max(0, y + size - height), max(0, x + size - width)
    inside = image[:, y + top : y + size - bottom, x + left : x + size - right]
    if not (top or left or bottom or right):
        return inside
    return F.pad(inside[None].float(), (left, right, top, bottom), mode="replicate")[0].to(torch.uint8)


def gathered(pixels: Tensor, table: Tensor, draws: Tensor, size: int, reach: int) -> Tensor:
    """`windows` without a wait for the device."""
    y, x, turn = draws[:, 1:, None].unbind(1)
    start, height, width = table[draws[:, 0]][:, :, None].unbind(1)
    along = torch.arange(-reach, size + reach, device=draws.device)
    back = size - 1 - along
    mirrored, quarter = turn >= 4, turn % 4
    # Of a turned square one image coordinate follows its rows and the other its columns, forwards or backwards.
    rows = torch.where((quarter == 1) | (quarter == 2), back, along)
    columns = torch.where((quarter >= 2) ^ mirrored, back, along)
    across = quarter % 2 == 1

    def offsets(along: Tensor, vertical: Tensor) -> Tensor:
        place, last = torch.where(vertical, y, x) + along, torch.where(vertical, height, width) - 1
        return place.clamp_min(0).minimum(last) * torch.where(vertical, width, 1)

    planes = start + torch.arange(3, device=draws.device) * (height * width)
    index = (planes[:, :, None] + offsets(rows, ~across)[:, None])[..., None] + offsets(columns, across)[:, None, None]
    return pixels.index_select(0, index.view(-1)).view(index.shape)
