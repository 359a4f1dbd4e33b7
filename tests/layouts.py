"""How other projects name the tensors of an SRResNet: what `test_community.py` builds their checkpoints from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from srgan_fast.model import Generator

# Our names -> the names of each project, in the order in which that project registers its modules.
DIALECTS: dict[str, tuple[dict[str, Any], Callable[[str], str]]] = {
    "leftthomas": (
        {"bias": True, "activation": "tanh", "skip_end": "prelu"},
        lambda key: rename(
            key,
            (r"head\.", "block1."),
            (r"body\.(\d+)\.norm", lambda m: f"block{int(m[1]) + 2}.bn"),
            (r"body\.(\d+)\.", lambda m: f"block{int(m[1]) + 2}."),
            (r"skip\.", "block17."),
            (r"upsample\.", "block18."),
            (r"output\.", "block18.2."),
        ),
    ),
    "Lornatang": (
        {},
        lambda key: rename(
            key,
            (r"head\.", "conv_block1."),
            (r"body\.(\d+)\.conv1", r"trunk.\1.rcb.0"),
            (r"body\.(\d+)\.norm1", r"trunk.\1.rcb.1"),
            (r"body\.(\d+)\.prelu", r"trunk.\1.rcb.2"),
            (r"body\.(\d+)\.conv2", r"trunk.\1.rcb.3"),
            (r"body\.(\d+)\.norm2", r"trunk.\1.rcb.4"),
            (r"skip\.", "conv_block2."),
            (r"upsample\.(\d)\.conv", r"upsampling.\1.upsample_block.0"),
            (r"upsample\.(\d)\.prelu", r"upsampling.\1.upsample_block.2"),
            (r"output\.", "conv_block3."),
        ),
    ),
    "sgrvinod": (
        {"bias": True, "activation": "tanh"},
        lambda key: rename(
            key,
            (r"head\.", "conv_block1.conv_block."),
            (r"body\.(\d+)\.conv([12])", r"residual_blocks.\1.conv_block\2.conv_block.0"),
            (r"body\.(\d+)\.norm([12])", r"residual_blocks.\1.conv_block\2.conv_block.1"),
            (r"body\.(\d+)\.prelu", r"residual_blocks.\1.conv_block1.conv_block.2"),
            (r"skip\.", "conv_block2.conv_block."),
            (r"upsample\.", "subpixel_convolutional_blocks."),
            (r"output\.", "conv_block3.conv_block.0."),
        ),
    ),
    "goldhuang": (
        {"bias": True, "activation": "tanh", "skip_end": "prelu"},
        lambda key: rename(
            key,
            (r"head\.", "conv1."),
            (r"body\.(\d+)\.conv1", lambda m: f"residual{int(m[1]) + 1}.net.0"),
            (r"body\.(\d+)\.norm1", lambda m: f"residual{int(m[1]) + 1}.net.1"),
            (r"body\.(\d+)\.prelu", lambda m: f"residual{int(m[1]) + 1}.net.2"),
            (r"body\.(\d+)\.conv2", lambda m: f"residual{int(m[1]) + 1}.net.3"),
            (r"body\.(\d+)\.norm2", lambda m: f"residual{int(m[1]) + 1}.net.4"),
            (r"skip\.", "conv2."),
            (r"upsample\.(\d)\.conv", r"upsample.\1.net.0"),
            (r"upsample\.(\d)\.prelu", r"upsample.\1.net.2"),
            (r"output\.", "upsample.2."),
        ),
    ),
    "Swift-SRGAN": (
        {"activation": "tanh", "separable": True, "prelu": "channel"},
        lambda key: rename(
            key,
            (r"head\.1", "initial.act"),
            (r"head\.0\.0", "initial.cnn.depthwise"),
            (r"head\.0\.1", "initial.cnn.pointwise"),
            (r"body\.(\d+)\.conv([12])\.0", r"residual.\1.block\2.cnn.depthwise"),
            (r"body\.(\d+)\.conv([12])\.1", r"residual.\1.block\2.cnn.pointwise"),
            (r"body\.(\d+)\.norm([12])", r"residual.\1.block\2.bn"),
            (r"body\.(\d+)\.prelu", r"residual.\1.block1.act"),
            (r"skip\.0\.0", "convblock.cnn.depthwise"),
            (r"skip\.0\.1", "convblock.cnn.pointwise"),
            (r"skip\.1", "convblock.bn"),
            (r"upsample\.(\d)\.conv\.0", r"upsampler.\1.conv.depthwise"),
            (r"upsample\.(\d)\.conv\.1", r"upsampler.\1.conv.pointwise"),
            (r"upsample\.(\d)\.prelu", r"upsampler.\1.act"),
            (r"output\.0", "final_conv.depthwise"),
            (r"output\.1", "final_conv.pointwise"),
        ),
    ),
    "aladdinpersson": (
        {"activation": "tanh", "prelu": "channel"},
        lambda key: rename(
            key,
            (r"head\.0", "initial.cnn"),
            (r"head\.1", "initial.act"),
            (r"body\.(\d+)\.conv([12])", r"residuals.\1.block\2.cnn"),
            (r"body\.(\d+)\.norm([12])", r"residuals.\1.block\2.bn"),
            (r"body\.(\d+)\.prelu", r"residuals.\1.block1.act"),
            (r"skip\.0", "convblock.cnn"),
            (r"skip\.1", "convblock.bn"),
            (r"upsample\.(\d)\.prelu", r"upsamples.\1.act"),
            (r"upsample\.", "upsamples."),
            (r"output\.", "final."),
        ),
    ),
    "dongheehand": (
        {"bias": True, "activation": "tanh"},
        lambda key: rename(
            key,
            (r"head\.", "conv01.body."),
            (r"body\.(\d+)\.conv([12])", lambda m: f"body.{m[1]}.body.{int(m[2]) - 1}.body.0"),
            (r"body\.(\d+)\.norm([12])", lambda m: f"body.{m[1]}.body.{int(m[2]) - 1}.body.1"),
            (r"body\.(\d+)\.prelu", r"body.\1.body.0.body.2"),
            (r"skip\.", "conv02.body."),
            (r"upsample\.(\d)\.conv", r"tail.\1.body.0.body.0"),
            (r"upsample\.(\d)\.prelu", r"tail.\1.body.2"),
            (r"output\.", "last_conv.body.0."),
        ),
    ),
    "twtygqyy": (
        {"norm": "instance-affine"},
        lambda key: rename(
            key,
            (r"(.*)prelu|head\.1", r"\1unused"),
            (r"head\.0", "conv_input"),
            (r"body\.(\d+)\.norm", r"residual.\1.in"),
            (r"body\.", "residual."),
            (r"skip\.0", "conv_mid"),
            (r"skip\.1", "bn_mid"),
            (r"upsample\.(\d)\.conv", lambda m: f"upscale4x.{3 * int(m[1])}"),
            (r"output", "conv_output"),
        ),
    ),
    "PyTorch-GAN": (
        {"bias": True, "activation": "tanh"},
        lambda key: rename(
            key,
            (r"head\.", "conv1."),
            (r"body\.(\d+)\.conv([12])", lambda m: f"res_blocks.{m[1]}.conv_block.{3 * int(m[2]) - 3}"),
            (r"body\.(\d+)\.norm([12])", lambda m: f"res_blocks.{m[1]}.conv_block.{3 * int(m[2]) - 2}"),
            (r"body\.(\d+)\.prelu", r"res_blocks.\1.conv_block.2"),
            (r"skip\.", "conv2."),
            (r"upsample\.(\d)\.conv", lambda m: f"upsampling.{4 * int(m[1])}"),
            (r"upsample\.(\d)\.prelu", lambda m: f"upsampling.{4 * int(m[1]) + 3}"),
            (r"output\.", "conv3.0."),
        ),
    ),
    "Fast-SRGAN": (
        {"norm": "instance", "activation": "tanh", "kernel": 3},
        lambda key: (
            "_orig_mod."
            + rename(
                key,
                (r"head\.", "neck."),
                (r"body\.(\d+)\.prelu", r"stem.\1.relu1"),
                (r"body\.", "stem."),
                (r"skip\.", "bottleneck."),
                (r"upsample\.", "upsampling."),
                (r"output\.", "head.0."),
            )
        ),
    ),
}


def rename(key: str, *rules: tuple[str, Any]) -> str:
    for pattern, name in rules:
        if re.match(pattern, key):
            return re.sub(pattern, name, key, count=1)
    raise AssertionError(key)


def foreign(name: str, network: Generator) -> dict[str, Tensor]:
    """The network's tensors as that project's checkpoints name them."""
    tensors = {}
    for key, value in network.state_dict().items():
        renamed = DIALECTS[name][1](key)
        tensors[renamed] = value
        if re.match(r"(residuals?\.\d+\.block2|convblock)\.bn\.num", renamed):
            # Swift-SRGAN and aladdinpersson register slopes that they do not apply.
            tensors[renamed.replace("bn.num_batches_tracked", "act.weight")] = torch.full((8,), 0.25)
    return tensors


def without_slopes(network: Generator, slope: float) -> None:
    """Every activation becomes a LeakyReLU of one slope, which a checkpoint does not hold."""
    for module in network.modules():
        if isinstance(module, torch.nn.PReLU):
            module.weight.data.fill_(slope)


# Those whose files hold something else than our tensors under other names; each has a test of its own.
SPECIAL = ("twtygqyy", "PyTorch-GAN")


def nameless(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each module under a name that says nothing."""
    prefixes: dict[str, str] = {}
    renamed = {}
    for key, value in tensors.items():
        prefix, _, leaf = key.rpartition(".")
        renamed[f"{prefixes.setdefault(prefix, f'layer{len(prefixes)}')}.{leaf}"] = value
    return renamed
