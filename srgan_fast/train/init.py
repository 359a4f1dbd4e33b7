"""Initial weights: ones that make a short run possible, and those of a network without normalisation for one with."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srgan_fast import weights
from srgan_fast.errors import UsageError
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.train.config import TrainConfig

_log = logging.getLogger(__name__)


def initial_generator(
    config: TrainConfig, source: Path | None, batches: Iterable[Tensor]
) -> tuple[Generator, dict[str, str] | None]:
    """The network as training finds it, and whose weights those are: name and digest, or None for fresh ones.

    `batches` of lr are taken where the source has no batch normalisation and the config has.

    Raises:  UsageError for weights of another network
    """
    if source is None:
        generator = Generator(config.generator)
        if config.init == "interpolating":
            interpolating_init(generator)
        return generator, None
    model = weights.load(source)
    network = model.network
    if isinstance(network, Generator) and network.config == config.generator:
        generator = network.train().requires_grad_()
    elif isinstance(network, Generator) and can_normalise(network.config, config.generator):
        _log.warning("%s has no batch normalisation: it is added, with the statistics of ten batches", source.name)
        generator = normalised(network, config.generator, batches)
    else:
        raise UsageError(
            "expected --init to be a generator of the run, got one that differs in"
            f" {_difference(network, config.generator)}; give such weights, or the options that they were trained with"
        )
    return generator, {"name": model.info.name, "digest": model.info.digest}


def _difference(network: nn.Module, wanted: GeneratorConfig) -> str:
    """In what a network differs from that of the run."""
    if not isinstance(network, Generator):
        return f"architecture ({type(network).__name__})"
    there, here = asdict(network.config), asdict(wanted)
    if network.config.norm == "none" and wanted.norm == "batch":  # no obstacle: see `can_normalise`
        there |= {"norm": here["norm"], "bias": here["bias"]}
    return ", ".join(f"{key} ({there[key]} there, {here[key]} here)" for key in here if there[key] != here[key])


@torch.no_grad()
def interpolating_init(generator: Generator) -> None:
    """Weights under which the network starts as bilinear interpolation plus residual branches that start at zero.

    Three feature maps carry the colours from the head to the output (PReLU passes them, being positive); every other
    map starts at random and may add to the picture at once. Training then has only detail to learn, which turns the
    first thousands of steps of a short run into tens. For networks without normalisation.
    """
    colours = range(3)
    centre = generator.config.kernel // 2
    # Any: a Sequential does not say what its items are.
    head: Any = generator.head[0]
    output: Any = generator.output
    skip: Any = generator.skip[0]
    blocks: Any = generator.body
    stages: Any = generator.upsample
    for c in colours:
        head.weight[c].zero_()
        head.weight[c, c, centre, centre] = 1
        head.bias[c] = 0
    for block in blocks:
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    skip.weight[:3].zero_()
    skip.bias[:3].zero_()
    near, far = 0.75, 0.25  # bilinear x2: the sub-pixel lies a quarter from its own pixel
    taps = (torch.tensor([far, near, 0.0]), torch.tensor([0.0, near, far]))
    for stage in stages:
        for c in colours:
            for phase in range(4):
                row = 4 * c + phase
                stage.conv.weight[row].zero_()
                stage.conv.weight[row, c] = torch.outer(taps[phase // 2], taps[phase % 2])
                stage.conv.bias[row] = 0
    output.weight.mul_(0.1)
    for c in colours:
        output.weight[c, :3].zero_()
        output.weight[c, c, centre, centre] = 2  # [0, 1] to [-1, 1]
        output.bias[c] = -1


def can_normalise(source: GeneratorConfig, target: GeneratorConfig) -> bool:
    """Whether `normalised` can turn a generator of one shape into one of the other."""
    plain = replace(target, norm="none")
    return source.norm == "none" and target.norm == "batch" and replace(source, bias=plain.bias) == plain


@torch.no_grad()
def normalised(source: Generator, target: GeneratorConfig, batches: Iterable[Tensor]) -> Generator:
    """The same function with batch normalisation after the convolutions that `target` normalises.

    The statistics are those of the batches, and scale and shift undo them: in evaluation the networks are equal, in
    training the first step differs as far as its batch does from these.

    Shapes:  batches of lr [n, 3, h, w] in [0, 1]
    """
    generator = Generator(target)
    convs = dict(source.named_modules())
    norms = {name: module for name, module in generator.named_modules() if isinstance(module, nn.BatchNorm2d)}
    # body.N.norm1 normalises body.N.conv1, skip.1 what skip.0 gives.
    of_norm = {name: name.replace("norm", "conv") if "norm" in name else "skip.0" for name in norms}
    sums = {name: torch.zeros(3, target.width, dtype=torch.float64) for name in norms}

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
            values = out.double()
            count = torch.full((target.width,), out.numel() / target.width, dtype=torch.float64)
            sums[name] += torch.stack([count, values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])

        return hook

    hooks = [convs[of_norm[name]].register_forward_hook(note(name)) for name in norms]
    try:
        for lr in batches:
            source(lr)
    finally:
        for handle in hooks:
            handle.remove()
    state = {key: value for key, value in source.state_dict().items() if key in generator.state_dict()}
    generator.load_state_dict(state, strict=False)
    for name, norm in norms.items():
        count, total, squares = sums[name]
        mean = total / count
        variance = squares / count - mean.square()
        conv: Any = convs[of_norm[name]]
        kept = generator.get_submodule(of_norm[name]).bias is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean if kept else mean - conv.bias.double())
        norm.running_var.copy_(variance)
        norm.weight.copy_(torch.sqrt(variance + norm.eps))
        norm.bias.copy_(mean)
    return generator
