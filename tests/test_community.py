"""Weights that others trained: their layouts are recognised, and what their files leave out is found or refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from layouts import DIALECTS, SPECIAL, foreign, nameless, without_slopes
from PIL import Image
from torch import Tensor

from srgan_fast import weights
from srgan_fast.community import bounds
from srgan_fast.errors import WeightsError
from srgan_fast.evaluate.metrics import score
from srgan_fast.model import (
    CompactConfig,
    Generator,
    GeneratorConfig,
    MSRResNet,
    MSRResNetConfig,
    SRVGGNetCompact,
)
from srgan_fast.rewrite import folded

TINY: dict[str, Any] = {"blocks": 2, "width": 8}


def generator(**config: Any) -> Generator:
    torch.manual_seed(1)
    return Generator(GeneratorConfig(**{**TINY, **config})).eval()


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in DIALECTS if name not in SPECIAL),
    ("leftthomas", {"skip_end": "norm"}),
    ("leftthomas", {"scale": 2}),
    ("leftthomas", {"blocks": 15}),
    ("Swift-SRGAN", {"scale": 2}),
    ("sgrvinod", {"scale": 8}),
    ("Fast-SRGAN", {"norm": "batch"}),
]


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize(("name", "change"), VARIANTS)
def test_layouts_of_the_family_are_recognised(tmp_path: Path, name: str, change: dict[str, Any], kind: str) -> None:
    network = generator(**{**DIALECTS[name][0], **change})
    tensors = foreign(name, network)
    path = tmp_path / f"foreign.{kind}"
    if kind == "pth":
        torch.save({"epoch": 3, "state_dict": tensors}, path)
    else:
        safetensors.torch.save_file(tensors, path)  # sorts the names
    model = weights.load(path)
    assert name in model.info.source
    assert name in model.info.assumptions[0]
    lr = torch.rand(1, 3, 9, 7)
    with torch.inference_mode():
        assert torch.equal(model.network(lr), network(lr))


def load_foreign(tmp_path: Path, tensors: dict[str, Tensor]) -> list[weights.Model]:
    torch.save(tensors, tmp_path / "foreign.pth")
    safetensors.torch.save_file(
        {key: value.clone() for key, value in tensors.items()}, tmp_path / "foreign.safetensors"
    )
    return [weights.load(tmp_path / f"foreign.{kind}") for kind in ("pth", "safetensors")]


@pytest.mark.parametrize("norm", ["batch", "instance-affine"])
def test_fixed_slopes_that_only_the_names_tell(tmp_path: Path, norm: str) -> None:
    network = generator(norm=norm)
    without_slopes(network, 0.2)
    for bias in (
        network.head[0].bias,
        network.output.bias,
        network.upsample[0].conv.bias,
        network.upsample[1].conv.bias,
    ):
        bias.data.zero_()  # type: ignore[union-attr,operator]
    kept = {
        key.replace(".in", ".bn") if norm == "batch" else key: value
        for key, value in foreign("twtygqyy", network).items()
        if "unused" not in key and not re.fullmatch(r"(conv_input|upscale4x\.\d|conv_output)\.bias", key)
    }
    for model in load_foreign(tmp_path, kept):
        assert "twtygqyy" in model.info.source
        assert (model.info.input_range, model.info.output_range) == ((0.0, 1.0), (0.0, 1.0))
        lr = torch.rand(1, 3, 9, 7)
        with torch.inference_mode():
            assert torch.equal(model.network(lr), network(lr))


@pytest.mark.parametrize("slopes", [True, False])
def test_batch_normalisation_of_another_kind(tmp_path: Path, slopes: bool) -> None:
    """PyTorch-GAN normalises before each PixelShuffle, and with PReLU by sqrt(var + 0.8)."""
    network = generator(**DIALECTS["PyTorch-GAN"][0])
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 1, 2)  # type: ignore[arg-type]
            torch.nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    if not slopes:
        without_slopes(network, 0.0)
    tensors = {}
    for key, value in foreign("PyTorch-GAN", network).items():
        if key.endswith("running_var") and slopes:
            tensors[key] = value - (0.8 - 1e-5)
        elif match := re.fullmatch(r"upsampling\.([04])\.weight", key):
            norm = f"upsampling.{int(match[1]) + 1}"
            scale = torch.linspace(0.5, 2, len(value))
            tensors |= {
                key: value * 3 / scale.view(-1, 1, 1, 1),
                f"{norm}.weight": scale,
                f"{norm}.running_mean": scale,
            }
            tensors |= {f"{norm}.running_var": torch.full((len(value),), 9 - 1e-5)}
            tensors |= {f"{norm}.bias": scale * scale / 3}
        elif match := re.fullmatch(r"upsampling\.([04])\.bias", key):
            tensors[key] = value * 3 / torch.linspace(0.5, 2, len(value))
        elif slopes or value.shape != (1,):
            tensors[key] = value
    for model in load_foreign(tmp_path, tensors):
        assert "PyTorch-GAN" in model.info.source
        assert "ImageNet" in model.info.assumptions[0]
        lr = torch.rand(1, 3, 9, 7)
        with torch.inference_mode():
            assert torch.allclose(model.network(lr), network(lr), atol=1e-5)


def test_a_last_kernel_smaller_than_the_first(tmp_path: Path) -> None:
    network = generator(**DIALECTS["dongheehand"][0])
    inside = network.output.weight.data[:, :, 3:6, 3:6].clone()  # type: ignore[union-attr,index]
    network.output.weight.data.zero_()  # type: ignore[union-attr,operator]
    network.output.weight.data[:, :, 3:6, 3:6] = inside  # type: ignore[union-attr,index]
    tensors = foreign("dongheehand", network) | {"last_conv.body.0.weight": inside}
    for model in load_foreign(tmp_path, tensors):
        assert "dongheehand" in model.info.source
        lr = torch.rand(1, 3, 9, 7)
        with torch.inference_mode():
            assert torch.equal(model.network(lr), network(lr))


def test_a_last_activation_that_the_names_tell(tmp_path: Path) -> None:
    """Lornatang's generator of 2021 ended in a Tanh, and its output range was that of its targets, [0, 1]."""
    network = generator(activation="tanh")
    tensors = {key.replace("conv3.", "conv3.0."): value for key, value in lornatang_of_2021(network).items()}
    for model in load_foreign(tmp_path, tensors):
        assert (model.info.config["activation"], model.info.output_range) == ("tanh", (0.0, 1.0))
        lr = torch.rand(1, 3, 9, 7)
        with torch.inference_mode():
            assert torch.equal(model.network(lr), network(lr))


def lornatang_of_2021(network: Generator) -> dict[str, Tensor]:
    rules = (("conv_block", "conv"), ("rcb.0", "conv1"), ("rcb.1", "bn1"), ("rcb.2", "prelu"), ("rcb.3", "conv2"))
    tensors = {}
    for key, value in foreign("Lornatang", network).items():
        for old, new in (*rules, ("rcb.4", "bn2"), ("upsampling", "subpixel_conv")):
            key = key.replace(old, new)
        tensors[key] = value
    return tensors


def test_names_that_promise_another_range_than_the_network_has(tmp_path: Path, shared_data: Path) -> None:
    """A network that plainly works in other ranges than its names say is read as it works."""
    tensors = torch.load(shared_data / "weights" / "leftthomas_srgan_x4_b5.pth", weights_only=True, map_location="cpu")
    # The same function of an input in [-1, 1]: x/2 + 1/2 where it is taken in, but for the border.
    weight = tensors["block1.0.weight"]
    tensors["block1.0.weight"], tensors["block1.0.bias"] = (
        weight / 2,
        tensors["block1.0.bias"] + weight.sum((1, 2, 3)) / 2,
    )
    torch.save(tensors, tmp_path / "signed.pth")
    info = weights.load(tmp_path / "signed.pth").info
    assert (info.input_range, info.output_range, info.config["activation"]) == ((-1.0, 1.0), (-1.0, 1.0), "tanh")
    assert "not as the leftthomas code has it" in info.assumptions[0]


@pytest.mark.parametrize("late", [(), ("norm1",), ("prelu",), ("norm1", "norm2", "prelu")])
def test_modules_that_are_registered_late_or_sorted(tmp_path: Path, late: tuple[str, ...]) -> None:
    """A block registers what it likes when it likes, and a format may sort the parts of the network by their names."""
    network = generator(bias=True)
    names = {"head.0": "entry", "head.1": "entry_act", "skip.0": "join", "skip.1": "calm", "output": "exit"}
    renamed = {}
    for key, value in network.state_dict().items():
        prefix, _, leaf = key.rpartition(".")
        name = names.get(prefix, prefix.replace("body", "tower").replace("upsample", "grow"))
        renamed[f"{name}.{leaf}"] = value
    tensors: dict[str, Tensor] = {}
    for wanted in (False, True):
        for block in range(2):
            for key, value in renamed.items():
                if key.startswith(f"tower.{block}.") and (key.split(".")[2] in late) == wanted:
                    tensors[key] = value
    order = [key for key in renamed if not key.startswith("tower")]
    at = order.index("join.weight")
    tensors = {key: renamed[key] for key in (*order[:at], *tensors, *order[at:])}
    for model in load_foreign(tmp_path, tensors):
        for key, value in network.state_dict().items():
            assert torch.equal(model.network.state_dict()[key], value)


def test_an_order_that_is_not_clear_is_refused(tmp_path: Path) -> None:
    network = generator(norm="none", skip_end="prelu")
    parts = {"head.0": "c", "head.1": "d", "skip.0": "f", "skip.1": "b", "output": "g"}  # b or d may follow either
    tensors = {}
    for key, value in network.state_dict().items():
        prefix, _, leaf = key.rpartition(".")
        tensors[f"{parts.get(prefix, prefix)}.{leaf}"] = value
    safetensors.torch.save_file(tensors, tmp_path / "unclear.safetensors")
    with pytest.raises(WeightsError, match="not known"):
        weights.load(tmp_path / "unclear.safetensors")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"n_averaged": torch.tensor(5), **{f"module.{key}": value for key, value in t.items()}},
        lambda t: {"params": {}, "params_ema": t},
        lambda t: {"state_dict": {"step_counter": torch.zeros(1), **{f"generator.{k}": v for k, v in t.items()},
                                  "discriminator.0.weight": torch.ones(2, 2)}},
        lambda t: {"model": {"state_dict": {f"module._orig_mod.{key}": value for key, value in t.items()}}},
        lambda t: {"step": torch.tensor(7), "generator": t, "discriminator": {"a.weight": torch.ones(1)}},
        lambda t: {"g_state_dict": t, "d_state_dict": {"a.weight": torch.ones(1, 1, 1, 1)}},
        lambda t: {"D": {"a.weight": torch.ones(1, 1, 1, 1)}, "G": t},
        lambda t: {"disc": {"a.weight": torch.ones(1, 1, 1, 1)}, "gen_state": t},
        lambda t: {"model": {key: value * 0 for key, value in t.items()}, "ema": t},
        lambda t: {"ema": {"decay": 0.999}, "model": t},
        lambda t: {"weights": {"net_G": t, "net_D": {"a.weight": torch.ones(1, 1, 1, 1)}}},
        lambda t: {"state_dict": {**{f"net_G.{k}": v for k, v in t.items()}, "net_D.0.weight": torch.ones(2, 2)}},
        lambda t: {"state_dict": {"D.0.weight": torch.ones(2, 2), **{f"G.{k}": v for k, v in t.items()}}},
        lambda t: {"epoch": 9, "our_network": t, "optimizer": {"state": {0: {"exp_avg": torch.ones(1, 1, 1, 1)}}}},
    ],
)  # fmt: skip
def test_what_scripts_wrap_around_a_generator_is_removed(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    network = generator(**DIALECTS["goldhuang"][0])
    torch.save(wrap(foreign("goldhuang", network)), tmp_path / "wrapped.pth")
    model = weights.load(tmp_path / "wrapped.pth")
    for key, value in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value)


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "loop.pth")
    with pytest.raises(WeightsError, match="state_dict"):
        weights.load(tmp_path / "loop.pth")


def test_what_a_project_leaves_implicit_is_written_out(tmp_path: Path) -> None:
    network = generator(prelu="channel", bias=True)
    tensors = {f"m.{key}": value for key, value in network.state_dict().items() if key != "skip.0.bias"}
    tensors["m.body.1.prelu.weight"] = torch.tensor([0.5])
    torch.save(tensors, tmp_path / "a.pth")
    got = weights.load(tmp_path / "a.pth").network.state_dict()
    assert torch.equal(got["skip.0.bias"], torch.zeros(8))
    assert torch.equal(got["body.1.prelu.weight"], torch.full((8,), 0.5))


def test_a_file_with_strange_names_is_told_by_its_tensors(tmp_path: Path) -> None:
    network = generator(blocks=11)  # sorted names put layer 10 before layer 2
    tensors = nameless(network.state_dict())
    safetensors.torch.save_file(tensors, tmp_path / "strange.safetensors")
    model = weights.load(tmp_path / "strange.safetensors")
    assert model.info.config["blocks"] == 11
    assert model.info.assumptions
    for key, value in network.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(model.network.state_dict()[key], value)


@pytest.mark.parametrize("container", ["params", "params_ema"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_compact_is_recognised(tmp_path: Path, scale: int, container: str) -> None:
    compact = SRVGGNetCompact(CompactConfig(blocks=5, width=8, scale=scale)).eval()
    count = len(compact.body)
    tensors = {key.replace("output", f"body.{count}"): value for key, value in compact.state_dict().items()}
    torch.save({container: tensors}, tmp_path / "compact.pth")
    safetensors.torch.save_file(tensors, tmp_path / "compact.safetensors")
    lr = torch.rand(1, 3, 6, 5)
    for name in ("compact.pth", "compact.safetensors"):
        with torch.inference_mode():
            assert torch.equal(weights.load(tmp_path / name).network(lr), compact(lr))


@pytest.mark.parametrize("project", ["BasicSR", "BasicSR of 2019", "mmagic"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_msrresnet_is_recognised(tmp_path: Path, scale: int, project: str) -> None:
    config = MSRResNetConfig(blocks=2, width=8, scale=scale, upsample_activation=project != "mmagic")
    plain = MSRResNet(config).eval()
    for value in plain.parameters():
        torch.nn.init.normal_(value, std=0.2)
    names = {"head": "conv_first", "refine": "conv_hr", "output": "conv_last"}
    for stage in (0, 1):
        names[f"upsample.{stage}"] = f"upconv{stage + 1}" if project != "mmagic" else f"upsample{stage + 1}."
    tensors = {}
    for key, value in plain.state_dict().items():
        prefix, _, leaf = key.rpartition(".")
        name = names.get(prefix, prefix)
        if project == "mmagic":
            name = name.replace("body", "trunk_net") + ("upsample_conv" if name.endswith(".") else "")
            name = f"generator.{name}"
        if project.endswith("2019"):
            name = name.replace("body", "recon_trunk").replace("conv_hr", "HRconv")
        tensors[f"{name}.{leaf}"] = value
    torch.save({"state_dict" if project == "mmagic" else "params": tensors}, tmp_path / "plain.pth")
    lr = torch.rand(1, 3, 6, 5)
    model = weights.load(tmp_path / "plain.pth")
    assert project.split()[0] in model.info.assumptions[0]
    with torch.inference_mode():
        got = model.network(lr)
        assert torch.equal(got, plain(lr))
        assert got.shape[-2:] == (6 * scale, 5 * scale)
    weights.convert(tmp_path / "plain.pth", tmp_path / "ours.safetensors")
    with torch.inference_mode():
        assert torch.equal(weights.load(tmp_path / "ours.safetensors").network(lr), got)


def test_ncnn_files_are_read(tmp_path: Path) -> None:
    compact = SRVGGNetCompact(CompactConfig(blocks=1, width=5, scale=2)).eval().half().float()
    lines, data = [], b""
    for module in [*compact.body, compact.output]:
        if isinstance(module, torch.nn.Conv2d):
            weight = module.weight.detach().numpy().astype("<f2").tobytes()
            data += (0x01306B47).to_bytes(4, "little") + weight + b"\0" * (-len(weight) % 4)
            data += module.bias.detach().numpy().astype("<f4").tobytes()  # type: ignore[union-attr]
            lines.append(f"Convolution c 1 1 a b 0={module.out_channels} 1=3 6={module.weight.numel()}")
        else:
            data += module.weight.detach().numpy().astype("<f4").tobytes()  # type: ignore[operator,union-attr]
            lines.append("PReLU p 1 1 a b 0=5")
    (tmp_path / "net.param").write_text("\n".join(["7767517", "9 9", "Input i 0 1 a", *lines]))
    (tmp_path / "net.bin").write_bytes(data)
    lr = torch.rand(1, 3, 6, 5)
    with torch.inference_mode():
        assert torch.equal(weights.load(tmp_path / "net.bin").network(lr), compact(lr))
    (tmp_path / "net.bin").write_bytes(data[:-4])
    with pytest.raises(WeightsError, match="ncnn"):
        weights.load(tmp_path / "net.bin")


# Name, PSNR and SSIM on Set5 (y601, the LR images that MATLAB wrote, fp32).
REAL = [
    ("leftthomas_srgan_x4_b5.pth", 30.657, 0.8642),
    ("kodeking_srgan_x4_b5.pth", 30.190, 0.8584),
    ("hasnainraz_fastsrgan_x4_b8.pt", 29.386, 0.8450),
    ("realesr-animevideov3-x4.bin", 28.250, 0.8271),
]


@pytest.mark.parametrize(("name", "psnr_db", "ssim"), REAL)
def test_real_checkpoints_score_what_they_should(shared_data: Path, name: str, psnr_db: float, ssim: float) -> None:
    model = weights.load(shared_data / "weights" / name)
    network = folded(model.network)
    (low, high), (base, top) = bounds(model.info.input_range), bounds(model.info.output_range)
    scores = []
    for path in sorted((shared_data / "Set5").glob("*.png")):
        (small,) = (shared_data / "Set5_LRx4_matlab").glob(f"{path.stem}*.png")
        hr, lr = (torch.from_numpy(np.array(Image.open(p).convert("RGB"))).permute(2, 0, 1) for p in (path, small))
        with torch.inference_mode():
            out = (network((lr[None] / 255) * (high - low) + low) - base) / (top - base)
        scores.append(score(hr, (out.clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8)[0], "y601", 4))
    assert np.mean([each.psnr_db for each in scores]) == pytest.approx(psnr_db, abs=0.01)
    assert np.mean([each.ssim for each in scores]) == pytest.approx(ssim, abs=0.0005)


@pytest.mark.parametrize("name", [name for name, *_ in REAL[:3]] + ["leftthomas_srgan_x2_b5.pth"])
def test_real_checkpoints_are_recognised_without_their_names(shared_data: Path, tmp_path: Path, name: str) -> None:
    """The order of the tensors gives the network, and trying out the usual colour ranges gives the right one."""
    named = weights.load(shared_data / "weights" / name)
    tensors = torch.load(shared_data / "weights" / name, weights_only=True, map_location="cpu")
    torch.save(nameless(tensors), tmp_path / "renamed.pth")
    info = weights.load(tmp_path / "renamed.pth").info
    assert (info.config, info.input_range, info.output_range) == (
        named.info.config,
        named.info.input_range,
        named.info.output_range,
    )
