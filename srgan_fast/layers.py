"""A checkpoint's tensors as layers in the order in which they run, and these as an SRResNet under our names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.rewrite import folded_weights

EPS = 1e-5  # of PyTorch's batch normalisation
# Above this many parts their orders are too many to try.
_MOST_PARTS = 8
_BATCH_NORM = {"weight", "bias", "running_mean", "running_var"}


@dataclass(frozen=True)
class Layer:
    """One module of a checkpoint: `kind` is conv, norm or prelu; a separable convolution has two parts."""

    kind: str
    parts: tuple[dict[str, Tensor], ...]

    @property
    def statistics(self) -> bool:
        """Whether a norm is one over batches, whose statistics are stored."""
        return "running_mean" in self.parts[0]

    @property
    def outputs(self) -> int:
        """The channels that come out; of a PReLU its slopes."""
        return self.parts[-1]["weight"].shape[0]

    @property
    def inputs(self) -> int:
        """The channels that go into a convolution."""
        first = self.parts[0]["weight"]
        return first.shape[0] if len(self.parts) == 2 else first.shape[1]


def layers_of(tensors: Mapping[str, Tensor]) -> list[Layer] | None:
    """Group tensors into modules, in order; None if some module is of another kind."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        prefix, _, leaf = key.rpartition(".")
        if leaf != "num_batches_tracked":
            modules.setdefault(prefix, {})[leaf] = value
    layers: list[Layer] = []
    for parts in modules.values():
        weight = parts.get("weight")
        if weight is None or weight.numel() == 0:
            return None
        if weight.dim() == 4 and set(parts) <= {"weight", "bias"}:
            pointwise = weight.shape[2:] == (1, 1)
            if pointwise and layers and layers[-1].kind == "depthwise":
                layers[-1] = Layer("conv", (layers[-1].parts[0], parts))
            else:
                depthwise = weight.shape[1] == 1 and weight.shape[0] > 1
                layers.append(Layer("depthwise" if depthwise else "conv", (parts,)))
        elif weight.dim() == 1 and set(parts) in (_BATCH_NORM, {"weight", "bias"}):  # InstanceNorm has no statistics
            layers.append(Layer("norm", (parts,)))
        elif weight.dim() == 1 and set(parts) == {"weight"}:
            layers.append(Layer("prelu", (parts,)))
        else:
            return None
    return layers


_ROLES = {"conv": 0, "cnn": 0, "bn": 1, "norm": 1, "in": 1, "prelu": 2, "relu": 2, "act": 2}


def natural(key: str) -> list[tuple[int, int, str]]:
    """Sorts block10 after block2, and within a block conv1, bn1, prelu, conv2, bn2: the order in which they run."""
    parts = []
    for part in key.split("."):
        match = re.fullmatch(r"(.*?)(\d{0,9})", part, flags=re.DOTALL)
        word, number = match.groups() if match else (part, "")
        parts.append((int(number) if number else 1, _ROLES.get(word, 0), word))
    return parts


def orders(tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """As saved; as counted, for formats that sort their keys; and as counted within each part of the network only.

    The last is for projects that register the modules of a block in another order than they run in.
    """
    yield tensors
    yield {key: tensors[key] for key in sorted(tensors, key=natural)}
    yield _joined(_parts(tensors))


def arrangements(tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Every order of the parts of the network in which three channels come in first and go out last."""
    parts = _parts(tensors)
    firsts = [part for part in parts if any(value.dim() == 4 and value.shape[1] == 3 for value in part.values())]
    lasts = [part for part in parts if any(value.dim() == 4 and value.shape[0] == 3 for value in part.values())]
    if len(firsts) != 1 or len(lasts) != 1 or not 3 <= len(parts) <= _MOST_PARTS:
        return
    between = [part for part in parts if part is not firsts[0] and part is not lasts[0]]
    for order in itertools.permutations(between):
        yield _joined([*firsts, *order, *lasts])


def _parts(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors by the first component in which their names differ, as saved; within a part as counted."""
    names = {key: key.split(".") for key in tensors}
    depth = 0
    while len({tuple(name[: depth + 1]) for name in names.values()}) == 1 and min(map(len, names.values())) > depth + 1:
        depth += 1
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parts.setdefault(names[key][depth], {})[key] = value
    return [{key: part[key] for key in sorted(part, key=natural)} for part in parts.values()]


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: value for part in parts for key, value in part.items()}


# --- an SRResNet in layers ------------------------------------------------------------------------------------


# The biases of convolutions that a normalisation may follow.
_INNER_BIAS = re.compile(r"(body\.\d+\.conv[12]|skip\.0)(\.[01])?\.bias")


class _Mismatch(Exception):
    """The layers are not those of an SRResNet."""


class _Parser:
    """Reads layers in the order of an SRResNet and collects their tensors under our names."""

    def __init__(self, layers: list[Layer], slope: float | None, eps: float) -> None:
        self.layers, self.position = layers, 0
        self.slope, self.eps = slope, eps
        self.tensors: dict[str, Tensor] = {}

    def peek(self, ahead: int = 0) -> Layer | None:
        index = self.position + ahead
        return self.layers[index] if index < len(self.layers) else None

    def take(self, kind: str, name: str) -> Layer:
        layer = self.peek()
        if layer is None or layer.kind != kind:
            raise _Mismatch
        for part_index, part in enumerate(layer.parts):
            prefix = f"{name}.{part_index}" if len(layer.parts) == 2 else name
            for leaf, value in part.items():
                self.tensors[f"{prefix}.{leaf}"] = value
        if kind == "norm" and layer.statistics:
            self.tensors[f"{name}.running_var"] = layer.parts[0]["running_var"] + (self.eps - EPS)
            self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(0)
        self.position += 1
        return layer

    def activation(self, name: str) -> int:
        """Take a PReLU, or one of the fixed slope where the names say that there is one; how many slopes it has."""
        if self.slope is None or ((layer := self.peek()) is not None and layer.kind == "prelu"):
            return self.take("prelu", name).outputs
        self.tensors[f"{name}.weight"] = torch.tensor([self.slope])
        return 1

    def optional(self, kind: str, name: str) -> bool:
        layer = self.peek()
        if layer is None or layer.kind != kind:
            return False
        self.take(kind, name)
        return True

    def parse(self) -> dict[str, Any]:
        """The configuration; the tensors are left in `self.tensors`."""
        head = self.take("conv", "head.0")
        width = head.outputs
        slopes = [self.activation("head.1")]
        blocks = 0
        norm = "none"
        while self._is_block(width):
            name = f"body.{blocks}"
            self.take("conv", f"{name}.conv1")
            if self.optional("norm", f"{name}.norm1"):
                norm = "batch" if f"{name}.norm1.running_mean" in self.tensors else "instance-affine"
            slopes.append(self.activation(f"{name}.prelu"))
            self.take("conv", f"{name}.conv2")
            if norm != "none":
                self.take("norm", f"{name}.norm2")
            blocks += 1
        self.take("conv", "skip.0")
        if self.optional("norm", "skip.1"):
            skip_end = "norm"
        else:
            skip_end = "prelu" if self.optional("prelu", "skip.1") else "none"
        stages = 0
        while (layer := self.peek()) is not None and layer.kind == "conv" and layer.outputs == 4 * width:
            self.take("conv", f"upsample.{stages}.conv")
            self._fold_norm(f"upsample.{stages}.conv")
            slopes.append(self.activation(f"upsample.{stages}.prelu"))
            stages += 1
        output = self.take("conv", "output")
        if self.peek() is not None or output.outputs != 3 or head.inputs != 3 or blocks == 0 or not 1 <= stages <= 3:
            raise _Mismatch
        return {
            "scale": 2**stages,
            "blocks": blocks,
            "width": width,
            "norm": norm,
            "prelu": "channel" if max(slopes) > 1 else "shared",
            "kernel": self._even_kernels(),
            "skip_end": skip_end,
            "bias": any(map(_INNER_BIAS.fullmatch, self.tensors)),
            "separable": len(head.parts) == 2,
        }

    def _is_block(self, width: int) -> bool:
        """A convolution of the trunk's width, perhaps a norm, PReLU, then another convolution of that width."""
        after = 2 if (layer := self.peek(1)) is not None and layer.kind == "norm" else 1
        if (layer := self.peek(after)) is not None and layer.kind == "prelu":
            after += 1
        elif self.slope is None:
            return False
        return all(
            layer is not None and layer.kind == "conv" and layer.inputs == width and layer.outputs == width
            for layer in (self.peek(), self.peek(after))
        )

    def _fold_norm(self, name: str) -> None:
        """Batch normalisation before a PixelShuffle, which our network has not, becomes part of its convolution."""
        layer = self.peek()
        if layer is None or layer.kind != "norm":
            return
        norm, weight = layer.parts[0], self.tensors.get(f"{name}.weight")
        if weight is None or not layer.statistics or len(norm["weight"]) != len(weight):
            raise _Mismatch
        gamma, beta, mean, variance = (norm[key] for key in ("weight", "bias", "running_mean", "running_var"))
        both = folded_weights(weight.double(), self.tensors.get(f"{name}.bias"), gamma, beta, mean, variance, EPS)
        self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"] = (each.float() for each in both)
        self.position += 1

    def _even_kernels(self) -> int:
        """The size of the first and the last kernel, with zeros around the smaller one, which change nothing."""
        names = ["head.0.weight", "output.weight"]
        if names[0] not in self.tensors:
            names = ["head.0.0.weight", "output.0.weight"]
        if not all(name in self.tensors for name in names):
            raise _Mismatch
        size: int = max(self.tensors[name].shape[-1] for name in names)
        for name in names:
            margin = size - self.tensors[name].shape[-1]
            if margin % 2:
                raise _Mismatch
            self.tensors[name] = F.pad(self.tensors[name], [margin // 2] * 4)
        return size


def parsed(
    ordered: Mapping[str, Tensor], slope: float | None = None, eps: float = EPS
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """An SRResNet's configuration and its tensors under our names; None if the tensors, in this order, are not one.

    `slope` is that of activations without parameters, None where there are none such; `eps` is what the project's batch
    normalisation adds to variances, and theirs are shifted so that our network's own gives the same.
    """
    layers = layers_of(ordered)
    if layers is None:
        return None
    parser = _Parser(layers, slope, eps)
    try:
        config = parser.parse()
        return config, _completed(config, parser.tensors)
    except _Mismatch:
        return None


def _completed(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write out what a project may leave implicit, then hold every tensor against the network's own shapes."""
    try:
        with torch.device("meta"):
            wanted = Generator(GeneratorConfig(**config)).state_dict()
    except ValueError as error:
        raise _Mismatch from error
    slopes = re.compile(r".*prelu\.weight|(head|skip)\.1\.weight")
    full = {}
    for key, want in wanted.items():
        value = tensors.get(key)
        if value is None and key.endswith(".bias"):
            value = torch.zeros(want.shape)
        elif value is not None and value.shape == (1,) and slopes.fullmatch(key):
            value = value.expand(want.shape).clone()
        if value is None or value.shape != want.shape:
            raise _Mismatch
        full[key] = value
    if tensors.keys() - wanted.keys():
        raise _Mismatch
    return full


def as_instance(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same tensors read as a network with InstanceNorm, whose usual form stores nothing and needs no bias."""
    kept = {key: value for key, value in tensors.items() if not _INNER_BIAS.fullmatch(key) or value.any()}
    config = {**config, "norm": "instance", "skip_end": "norm", "bias": any(map(_INNER_BIAS.fullmatch, kept))}
    return config, _completed(config, kept)
