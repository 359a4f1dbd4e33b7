"""What a network needs to run in int8: a scale for each tensor that is quantised, and how the scales were found.

It lies beside the weights in their file, under names of its own, so that whoever does not know of int8 reads the file
as before.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from srgan_fast.errors import WeightsError

VERSION = 1
_KEY = "srgan_fast_int8"
_CHECK = "srgan_fast_int8_sha256"


@dataclass(frozen=True)
class Calibration:
    """The int8 scales of a network.

    `scales` says what one step of a convolution's input is worth, by the convolution's name; weights need none, they
    are quantised by channel as they are. `weights` is the digest of the tensors that the scales belong to.

    Units:  scales are float32 values above 0; percentile in percent, 100 is the largest value; PSNR y601 in dB against
            the originals of the calibration images, `psnr_db` that of fp32, `drop_db` what int8 loses
    """

    scales: dict[str, float]
    weights: str
    percentile: float
    images: int
    images_sha256: str
    psnr_db: float
    drop_db: float
    limit_db: float


def quantised_layers(network: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions that int8 is for, by name: all but the first and the last, which stay in floats."""
    found = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: found[name] for name in list(found)[1:-1]}


def to_metadata(calibration: Calibration) -> dict[str, str]:
    """Text for a weights file."""
    text = json.dumps({"version": VERSION, **asdict(calibration)}, sort_keys=True)
    return {_KEY: text, _CHECK: hashlib.sha256(text.encode()).hexdigest()}


def from_metadata(metadata: Mapping[str, str], network: nn.Module, weights: str, path: object) -> Calibration | None:
    """The calibration in a weights file, held against the network and the digest of its tensors; None if it has none.

    Raises:  WeightsError if it is damaged, of a version that is not known, or of other weights
    """
    if _KEY not in metadata:
        return None
    text = metadata[_KEY]
    again = "fetch it again, or run srgan-fast calibrate on the weights that it was made from"
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get(_CHECK):
        raise WeightsError(f"the int8 scales of {path} do not match their digest: damaged; {again}")
    try:
        content: dict[str, Any] = json.loads(text)
        version = content.pop("version")
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise WeightsError(f"the int8 scales of {path} cannot be read ({type(error).__name__}); {again}") from error
    if version != VERSION:
        raise WeightsError(f"{path} has int8 scales of version {version!r:.20}, expected {VERSION}; {again}")
    if set(content) != {field.name for field in fields(Calibration)}:
        raise WeightsError(f"the int8 scales of {path} are not complete; {again}")
    calibration = Calibration(**content)
    if calibration.weights != weights:
        raise WeightsError(f"the int8 scales of {path} were made for other weights; {again}")
    scales = calibration.scales
    whole = isinstance(scales, dict) and set(scales) == set(quantised_layers(network))
    if not whole or not all(isinstance(scale, float) and 0 < scale < math.inf for scale in scales.values()):
        raise WeightsError(f"expected a scale above 0 in {path} for each inner convolution, got others; {again}")
    return calibration
