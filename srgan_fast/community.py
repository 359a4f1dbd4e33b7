"""Checkpoints that others trained: recognised by the order and shapes of their tensors, with names as evidence.

`LAYOUTS` has one row a layout. A row's function takes the tensors and returns what they are, or None. The
SRResNet family is one parser, because its members differ only in names and in how they treat colours: `_DIALECTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.errors import WeightsError
from srgan_fast.layers import EPS, arrangements, as_instance, layers_of, natural, orders, parsed
from srgan_fast.model import Generator, GeneratorConfig

# A colour range: one number for all channels, or one a channel.
Bound = float | tuple[float, float, float]
Range = tuple[Bound, Bound]

_UNIT: Range = (0.0, 1.0)
_SIGNED: Range = (-1.0, 1.0)
# [0, 1] after the normalisation of torchvision's ImageNet models.
_IMAGENET: Range = (
    (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
    ((1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225),
)
_SPOKEN = {_UNIT: "[0, 1]", _SIGNED: "[-1, 1]", _IMAGENET: "ImageNet-normalised"}


@dataclass(frozen=True)
class Recognised:
    """A checkpoint in this project's terms; `assumptions` says what its tensors cannot tell."""

    layout: str
    architecture: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    input_range: Range = _UNIT
    output_range: Range = _UNIT
    assumptions: tuple[str, ...] = ()


def recognise(tensors: Mapping[str, Tensor], file_name: str) -> Recognised:
    """Tell what network a bag of tensors is.

    Raises:  WeightsError with the keys that were seen and the layouts that are known
    """
    for reader in LAYOUTS.values():
        found = reader(tensors)
        if found is not None:
            return found
    keys = list(tensors)
    # repr: a damaged file may have line breaks in its names
    seen = ", ".join(f"{key!r:.60} {tuple(tensors[key].shape)}" for key in keys[:4])
    known = dict.fromkeys([*(dialect.name for dialect in _DIALECTS), *LAYOUTS])
    raise WeightsError(
        f"{file_name} has {len(keys)} tensors of a layout that is not known ({seen}{', ...' if len(keys) > 4 else ''});"
        f" known layouts: {', '.join(known)}"
    )


def bounds(colour_range: Range) -> tuple[Tensor, Tensor]:
    """A colour range as two tensors [c, 1, 1] that broadcast over frames."""
    low, high = (torch.tensor(bound, dtype=torch.float32).reshape(-1, 1, 1) for bound in colour_range)
    return low, high


# --- the SRResNet family ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Dialect:
    """What a project's names tell that its tensors cannot: the order of its parts, and how it treats colours."""

    name: str
    parts: tuple[str, ...]  # in the order in which they run; each starts some key, and each key starts with one
    input_range: Range
    output_range: Range
    activation: str
    norm: str = "none"  # of blocks that carry no normalisation tensors
    unused: str = r"(?!)"  # parameters that the project registers but never applies
    slope: float | None = None  # of activations without parameters; None: there are none such
    eps: float = EPS  # of the batch normalisation at LR resolution

    def order(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The tensors in the order in which they run; None if the names are not this project's."""
        ranks = {}
        for key in tensors:
            rank = next((i for i, part in enumerate(self.parts) if re.match(part, key)), None)
            if rank is None:
                return None
            ranks[key] = rank
        if len(set(ranks.values())) < len(self.parts):
            return None
        ordered = sorted(tensors, key=lambda key: (ranks[key], natural(key)))
        return {key: tensors[key] for key in ordered if not re.match(self.unused, key)}


_PYTORCH_GAN = (r"conv1\.", r"res_blocks\.", r"conv2\.", r"upsampling\.", r"conv3\.0\.")

_DIALECTS = (
    _Dialect("leftthomas", (r"block\d+\.",), _UNIT, _SIGNED, "tanh"),
    _Dialect(
        "Fast-SRGAN",
        (r"neck\.", r"stem\.", r"bottleneck\.", r"upsampling\.", r"head\."),
        _SIGNED,
        _SIGNED,
        "tanh",
        norm="instance",
    ),
    _Dialect(  # that of 2021, whose last convolution is followed by a Tanh
        "Lornatang",
        (r"conv1\.", r"trunk\.", r"conv2\.", r"(upsampling|subpixel_conv)\.", r"conv3\.0\."),
        _UNIT,
        _UNIT,
        "tanh",
    ),
    _Dialect(
        "Lornatang",
        (r"conv(_block)?1\.", r"trunk\.", r"conv(_block)?2\.", r"(upsampling|subpixel_conv)\.", r"conv(_block)?3\."),
        _UNIT,
        _UNIT,
        "none",
    ),
    _Dialect(
        "sgrvinod",
        (r"conv_block1\.", r"residual_blocks\.", r"conv_block2\.", r"subpixel_conv\w*\.", r"conv_block3\."),
        _IMAGENET,
        _SIGNED,
        "tanh",
    ),
    _Dialect("goldhuang", (r"conv1\.", r"residual\d+\.", r"conv2\.", r"upsample\."), _UNIT, _SIGNED, "tanh"),
    _Dialect(
        "Swift-SRGAN",
        (r"initial\.", r"residual\.", r"convblock\.", r"upsampler\.", r"final_conv\."),
        _UNIT,
        _SIGNED,
        "tanh",
        # Every block registers an activation, also the two kinds that are told not to use it.
        unused=r"(residual\.\d+\.block2|convblock)\.act\.",
    ),
    _Dialect(
        "aladdinpersson",
        (r"initial\.", r"residuals\.", r"convblock\.", r"upsamples\.", r"final\."),
        _UNIT,
        _SIGNED,
        "tanh",
        unused=r"(residuals\.\d+\.block2|convblock)\.act\.",
    ),
    _Dialect("PyTorch-GAN", _PYTORCH_GAN, _IMAGENET, _IMAGENET, "tanh", eps=0.8),
    _Dialect("PyTorch-GAN", _PYTORCH_GAN, _IMAGENET, _IMAGENET, "tanh", slope=0.0),  # of 2018, with ReLU
    _Dialect(
        "twtygqyy",
        (r"conv_input\.", r"residual\.", r"conv_mid\.", r"bn_mid\.", r"upscale4x\.", r"conv_output\."),
        _UNIT,
        _UNIT,
        "none",
        slope=0.2,
    ),
    _Dialect(
        "dongheehand",
        (r"conv01\.", r"body\.", r"conv02\.", r"tail\.", r"last_conv\."),
        _SIGNED,
        _SIGNED,
        "tanh",
    ),
)


_TREATMENTS: tuple[tuple[Range, Range, str], ...] = (
    (_UNIT, _SIGNED, "tanh"),
    (_UNIT, _SIGNED, "none"),
    (_UNIT, _UNIT, "none"),
    (_UNIT, _UNIT, "tanh"),
    (_SIGNED, _SIGNED, "tanh"),
    (_SIGNED, _SIGNED, "none"),
    (_IMAGENET, _SIGNED, "tanh"),
    (_IMAGENET, _IMAGENET, "tanh"),
)
# Mean error on a smooth picture: real networks stay below it when read rightly, and well above when not.
_GOOD_ERROR = 0.05


@dataclass(frozen=True)
class _Reading:
    """A network and how it treats colours, which its tensors do not tell."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    input_range: Range
    output_range: Range

    def error(self) -> float:
        """Mean error on a smooth picture."""
        axis = torch.linspace(0.1, 0.9, 24)
        picture = torch.stack([axis.expand(24, 24), axis[:, None].expand(24, 24), axis.flip(0).expand(24, 24)])[None]
        want = F.interpolate(picture, scale_factor=self.config["scale"], mode="bilinear", align_corners=False)
        with torch.device("meta"):
            network = Generator(GeneratorConfig(**self.config)).eval()
        stored = {key: value.float() if value.is_floating_point() else value for key, value in self.tensors.items()}
        network.load_state_dict(stored, assign=True)
        low, high = bounds(self.input_range)
        with torch.inference_mode():
            out = network(picture * (high - low) + low)
        low, high = bounds(self.output_range)
        error = float((((out - low) / (high - low)).clamp(0, 1) - want).abs().mean())
        return error if error == error else 1.0  # a network that gives no numbers at all comes last

    def recognised(self, layout: str, why: str) -> Recognised:
        return Recognised(
            layout,
            "srresnet",
            self.config,
            self.tensors,
            self.input_range,
            self.output_range,
            assumptions=(f"{_said(self)}: {why}",),
        )


def _srresnet_family(tensors: Mapping[str, Tensor]) -> Recognised | None:
    for dialect in _DIALECTS:
        ordered = dialect.order(tensors)
        found = parsed(ordered, dialect.slope, dialect.eps) if ordered is not None else None
        if found is None:
            continue
        config, ours = found
        if dialect.norm == "instance" and config["norm"] == "none" and config["skip_end"] == "none":
            config, ours = as_instance(config, ours)
        named = _Reading({**config, "activation": dialect.activation}, ours, dialect.input_range, dialect.output_range)
        return _as_named(dialect.name, named)
    for order in orders(tensors):
        if (found := parsed(order)) is not None:
            return _by_trial(*found)
    fitting = [found for order in arrangements(tensors) if (found := parsed(order)) is not None]
    return _by_trial(*fitting[0]) if len(fitting) == 1 else None


def _said(reading: _Reading) -> str:
    said = f"input {_SPOKEN[reading.input_range]}, output {_SPOKEN[reading.output_range]}"
    said += f", output activation {reading.config['activation']}"
    return said + (", InstanceNorm where no normalisation is stored" if reading.config["norm"] == "instance" else "")


def _as_named(name: str, named: _Reading) -> Recognised:
    """As the project's code has it, unless that makes nonsense of a smooth picture and the usual treatment does not."""
    said = f"as the {name} code has it"
    wrong = named.error()
    if wrong > _GOOD_ERROR:
        chosen, error = min(_trials(named.config, named.tensors), key=lambda trial: trial[1])
        if error < min(_GOOD_ERROR, wrong / 4):
            return chosen.recognised(
                name, f"not {said}, which does not return a smooth picture (mean error {wrong:.3f}, now {error:.3f})"
            )
    return named.recognised(name, said)


def _by_trial(config: dict[str, Any], tensors: dict[str, Tensor]) -> Recognised:
    """Names say nothing: take the treatment of colours under which a smooth picture comes back as itself."""
    trials = _trials(config, tensors)
    if config["norm"] == "none" and config["skip_end"] == "none":
        trials += _trials(*as_instance(config, tensors))
    chosen, error = min(trials, key=lambda trial: trial[1])
    said = f"of the usual ones, what returns a smooth picture best (mean error {error:.3f})"
    return chosen.recognised("SRResNet family", said)


def _trials(config: dict[str, Any], tensors: dict[str, Tensor]) -> list[tuple[_Reading, float]]:
    """The usual treatments of colours, each with its error."""
    readings = [
        _Reading({**config, "activation": activation}, tensors, input_range, output_range)
        for input_range, output_range, activation in _TREATMENTS
    ]
    return [(reading, reading.error()) for reading in readings]


# --- other networks ---------------------------------------------------------------------------------------------


def _compact(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """SRVGGNetCompact: convolutions with PReLU between them, the last to 3 x scale^2 channels."""
    for ordered in orders(tensors):
        layers = layers_of(ordered)
        if layers is None or len(layers) < 3 or any(len(layer.parts) > 1 for layer in layers):
            continue
        kinds = [layer.kind for layer in layers]
        width = layers[0].outputs
        channels = [3, *(width for _ in layers[2::2])]
        scale = round((layers[-1].outputs / 3) ** 0.5)
        if kinds != ["conv", "prelu"] * (len(layers) // 2) + ["conv"] or layers[-1].outputs != 3 * scale**2:
            continue
        ours: dict[str, Tensor] = {}
        for index, layer in enumerate(layers):
            name = f"body.{index}" if index < len(layers) - 1 else "output"
            ours |= {f"{name}.{leaf}": value for leaf, value in layer.parts[0].items()}
        shapes = [(width, inputs, 3, 3) for inputs in channels[:-1]] + [(3 * scale**2, width, 3, 3)]
        if [tuple(layer.parts[0]["weight"].shape) for layer in layers[::2]] != shapes:
            continue
        config = {"scale": scale, "blocks": len(layers) // 2 - 1, "width": width, "activation": "prelu"}
        said = "input and output [0, 1], the nearest-neighbour enlargement added: as the Real-ESRGAN code has it"
        return Recognised("SRVGGNetCompact", "compact", config, ours, assumptions=(said,))
    return None


def _msrresnet(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """MSRResNet of BasicSR (body.N or recon_trunk.N, upconvN) and of mmagic (trunk_net.N, upsampleN.upsample_conv)."""
    names = (
        (r"conv_first\.(\w+)", r"head.\1"),
        (r"(?:body|recon_trunk|trunk_net)\.(\d+)\.conv([12])\.(\w+)", r"body.\1.conv\2.\3"),
        (r"(?:upconv1|upsample1\.upsample_conv)\.(\w+)", r"upsample.0.\1"),
        (r"(?:upconv2|upsample2\.upsample_conv)\.(\w+)", r"upsample.1.\1"),
        (r"(?:conv_hr|HRconv)\.(\w+)", r"refine.\1"),
        (r"conv_last\.(\w+)", r"output.\1"),
    )
    ours: dict[str, Tensor] = {}
    for key, value in tensors.items():
        pattern, name = next((rule for rule in names if re.fullmatch(rule[0], key)), ("", ""))
        if not pattern:
            return None
        ours[re.sub(pattern, name, key)] = value
    blocks = len({key.split(".")[1] for key in ours if key.startswith("body.")})
    stages = len({key.split(".")[1] for key in ours if key.startswith("upsample.")})
    first = ours.get("upsample.0.weight")
    if not blocks or first is None or first.dim() != 4 or "refine.weight" not in ours:
        return None
    basicsr = any(key.startswith("upconv1.") for key in tensors)
    width = first.shape[1]
    config = {
        "scale": 3 if first.shape[0] == 9 * width else 2**stages,
        "blocks": blocks,
        "width": width,
        # mmagic's forward has no activation after the sub-pixel stages; that of BasicSR has.
        "upsample_activation": basicsr,
    }
    said = f"input and output [0, 1]: as the {'BasicSR' if basicsr else 'mmagic'} code has it"
    return Recognised("MSRResNet", "msrresnet", config, ours, assumptions=(said,))


LAYOUTS: dict[str, Callable[[Mapping[str, Tensor]], Recognised | None]] = {
    "SRResNet family": _srresnet_family,
    "SRVGGNetCompact": _compact,
    "MSRResNet": _msrresnet,
}
