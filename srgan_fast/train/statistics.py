"""Batch statistics for inference: those that training left behind belong to other weights and to small crops."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from srgan_fast.model import Generator
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.data import degrade
from srgan_fast.train.store import ImageStore
from srgan_fast.train.validation import exact_float32

# A mean and a variance a feature map are settled by a million positions; more images say more than larger ones.
_IMAGES = 32
# Training normalises over a batch, and so does this: one image by itself varies less than a batch of different ones.
_BATCH = 16
# LR pixels a side: 16 such images are 600 MB at once in the paper's network, and only 2 pixels in a hundred of them
# lie at a border, against 16 of a training crop.
_SIDE = 192


def normalises(generator: Generator) -> bool:
    """Whether a generator has running statistics to estimate."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in generator.modules())


@torch.no_grad()
def reestimated(generator: Generator, count: int, image: Callable[[int], Tensor]) -> tuple[Generator, int]:
    """A copy in eval mode whose running statistics are the mean of those of batches of whole images, and their number.

    `image` gives the LR of training image i out of `count`, uint8 [3, h, w]; of large ones the middle is taken. What
    is given stays as it is, and so does the random state.
    """
    device = next(generator.parameters()).device
    # Not a deepcopy: where the training network shares statistics with other ranks, this one must not wait for them.
    # And not of new weights: drawing them would move the random state.
    with torch.device("meta"):
        copy = Generator(generator.config)
    copy.load_state_dict({key: value.clone() for key, value in generator.state_dict().items()}, assign=True)
    for module in copy.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # every batch counts alike
    copy.train()
    chosen = [index * count // min(count, _IMAGES) for index in range(min(count, _IMAGES))]
    for batch in _batches([image(index) for index in chosen]):
        with exact_float32():
            copy.trunk((batch.to(device) / 255.0).contiguous(memory_format=torch.channels_last))
    for module in copy.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return copy.eval().requires_grad_(False), len(chosen)


def whole_lr(store: ImageStore, config: TrainConfig, index: int) -> Tensor:
    """The LR of a training image as a whole, or of as much of its middle as `reestimated` takes; uint8 [3, h, w]."""
    if store.lows is not None:
        return store.low(index)
    hr, scale = store.image(index), config.generator.scale
    height, width = (min(_SIDE, size // scale) * scale for size in hr.shape[1:])
    return degrade(_middle(hr, height, width), config)


def _batches(images: list[Tensor]) -> Iterator[Tensor]:
    """Images of similar size together, each cut to the smallest of its batch."""
    images.sort(key=lambda image: (image.shape[1], image.shape[2]))
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        height, width = (min(_SIDE, *(image.shape[axis] for image in batch)) for axis in (1, 2))
        yield torch.stack([_middle(image, height, width) for image in batch])


def _middle(image: Tensor, height: int, width: int) -> Tensor:
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]
