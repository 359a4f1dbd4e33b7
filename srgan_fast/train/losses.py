"""The loss terms of the paper, each over a batch of images in [-1, 1].

Where the paper writes a sum over training samples this takes the batch mean, so that a rate does not depend on the
batch. Its equation 4 writes the pixel as one value, and the mean here runs over the three channels too, so that the
MSE is the one that PSNR is made of; equations 5 and 6 are followed to the letter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from srgan_fast.errors import UsageError
from srgan_fast.features import Features, load_squeezenet, load_vgg19
from srgan_fast.train.config import TrainConfig

# "VGG feature maps were also rescaled by a factor of 1/12.75".
_VGG_SCALE = 1 / 12.75


def mse(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean squared error over pixels and channels, on the range [-1, 1] (equation 4)."""
    return F.mse_loss(sr.float(), hr)


class PerceptualLoss(nn.Module):
    """Squared distance of scaled feature maps (equation 5).

    `reduction` "paper" sums over channels and averages over positions and the batch; "mean" averages over all.
    `pixel_weight` adds `mse`, so weighted.
    """

    def __init__(self, features: Features, reduction: str, pixel_weight: float = 0.0) -> None:
        super().__init__()
        self.features, self.reduction, self.pixel_weight = features, reduction, pixel_weight

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [-1, 1] -> a scalar in float32, with a gradient for `sr` alone."""
        # Autocast hands over bfloat16, which is coarser than the grey levels that the features are to tell apart.
        got, want = self.features.pair(sr.float(), hr)
        difference = (got.float() - want.float()) * _VGG_SCALE
        total = difference.square()
        distance = total.sum(1).mean() if self.reduction == "paper" else total.mean()
        return distance + self.pixel_weight * mse(sr, hr) if self.pixel_weight else distance


def adversarial(logits_sr: Tensor) -> Tensor:
    """-log D(G(lr)), batch mean (equation 6): softplus of the negative logit, which never overflows."""
    return F.softplus(-logits_sr.float()).mean()


def discriminator(logits_hr: Tensor, logits_sr: Tensor) -> Tensor:
    """-log D(hr) - log(1 - D(sr)), batch means: what the discriminator minimises (equation 2)."""
    return F.softplus(-logits_hr.float()).mean() + F.softplus(logits_sr.float()).mean()


Content = Callable[[Tensor, Tensor], Tensor]


def features_file(config: TrainConfig, files: Mapping[str, Path | str | None]) -> Path | str | None:
    """The weights file of the network that the content loss looks through, of those given by the networks' names.

    Raises:  UsageError for a file that the loss does not look at
    """
    for network, file in files.items():
        if file is not None and not config.content.startswith(network):
            raise UsageError(
                f"expected no --{network}-weights, for the content loss is {config.content}, got {file};"
                " leave it out, or give another --content"
            )
    return next((file for file in files.values() if file is not None), None)


def content_loss(config: TrainConfig, features: Path | None) -> Content:
    """The content loss of a run, by the weights file of its features.

    Raises:  InputError for a file that is missing; WeightsError for another one
    """
    if config.content == "mse":
        return mse
    network: Features
    if config.content == "squeezenet":
        network = load_squeezenet(features)
    else:
        layer = {"vgg22": (2, 2), "vgg54": (5, 4)}[config.content]
        network = load_vgg19(*layer, features, config.vgg_input)
    return PerceptualLoss(network, config.vgg_reduction, config.pixel_weight)
