"""Weights: what is saved comes back, what is damaged is refused, what others trained is recognised."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import DIALECTS, SPECIAL, foreign, nameless, without_slopes
from PIL import Image
from torch import Tensor

from srgan_fast import weights
from srgan_fast.community import bounds
from srgan_fast.errors import OutputError, SRGANFastError, UsageError, WeightsError
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


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    network = generator()
    saved = weights.save(tmp_path / "a.safetensors", network, name="a", recipe={"steps": 3})
    model = weights.load(tmp_path / "a.safetensors")
    assert model.info == saved
    assert model.info.recipe == {"steps": 3}
    assert not model.network.training
    for key, value in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value)
    again = weights.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert again.digest == saved.digest
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors"]


def test_bundled_weights_load() -> None:
    assert "srresnet_x4" in weights.bundled()
    assert weights.load("srresnet_x4").info.config["blocks"] == 16


def test_a_name_that_is_nothing() -> None:
    with pytest.raises(UsageError, match="srresnet_x4"):
        weights.load("no_such_model")


def test_weights_of_another_network(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(WeightsError, match="Swift-SRGAN"):
        weights.convert(tmp_path / "linear.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil-was-run",)


def test_code_in_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}))
    torch.save({"model": Evil()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(WeightsError):
            weights.load(tmp_path / name)
    assert not (tmp_path / "evil-was-run").exists()


def test_options_and_scores_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    content = {"args": argparse.Namespace(out=Path("run"), scale=4), "best": np.float64(30.2), "epoch": np.int64(7)}
    network = generator(**DIALECTS["goldhuang"][0])
    torch.save({**content, "state_dict": foreign("goldhuang", network)}, tmp_path / "a.pth")
    model = weights.load(tmp_path / "a.pth")
    assert torch.equal(model.network.state_dict()["head.0.weight"], network.state_dict()["head.0.weight"])


def test_numbers_that_a_file_claims_but_does_not_hold(tmp_path: Path) -> None:
    huge = {f"head.0.{leaf}": torch.zeros(1).expand(10**6, 3, 9, 9) for leaf in ("weight", "bias")}
    torch.save(huge, tmp_path / "huge.pth")
    with pytest.raises(WeightsError, match="claims more"):
        weights.load(tmp_path / "huge.pth")
    header = b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "huge.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    (tmp_path / "header.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + header)
    for name in ("huge.safetensors", "header.safetensors"):
        with pytest.raises(WeightsError, match="cannot be read"):
            weights.load(tmp_path / name)


def test_numbers_that_are_not_numbers(tmp_path: Path) -> None:
    tensors = generator().state_dict()
    tensors["body.1.norm2.weight"][3] = float("nan")
    torch.save(tensors, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match=r"body\.1\.norm2\.weight"):
        weights.load(tmp_path / "nan.pth")


def test_a_variance_below_zero(tmp_path: Path) -> None:
    tensors = generator().state_dict()
    tensors["body.1.norm2.running_var"][3] = -1.0
    torch.save(tensors, tmp_path / "negative.pth")
    with pytest.raises(WeightsError, match="negative variance"):
        weights.load(tmp_path / "negative.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    torch.jit.trace(generator(), torch.rand(1, 3, 4, 4)).save(tmp_path / "script.pt")  # type: ignore[no-untyped-call]
    with pytest.raises(WeightsError, match="state_dict alone"):
        weights.load(tmp_path / "script.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 2}, {"scale": None}, {"architecture": ["srresnet"]}, {"architecture": "other"}, {"config": []},
        {"config": {"blocks": 10**9}}, {"config": {"blocks": "many"}}, {"config": {"width": 10**12, "blocks": 2}},
        {"output_range": [[0], "a"]}, {"output_range": [0.0, 1.0, 2.0]}, {"digest": "0"}, {"extra": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("rechecked", [False, True])
def test_metadata_that_was_changed_is_refused(tmp_path: Path, change: dict[str, Any], rechecked: bool) -> None:
    path = tmp_path / "a.safetensors"
    weights.save(path, generator(), name="a", recipe={})
    with safetensors.safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    metadata["srgan_fast"] = json.dumps(json.loads(metadata["srgan_fast"]) | change)
    if rechecked:
        metadata["srgan_fast_sha256"] = hashlib.sha256(metadata["srgan_fast"].encode()).hexdigest()
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(WeightsError) as caught:
        weights.load(path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.safetensors").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        weights.save(tmp_path / "a.safetensors", generator(), name="a", recipe={})
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == b"before"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        weights.save(tmp_path / "no" / "a.safetensors", generator(), name="a", recipe={})


def damaged(data: bytes, draw: Any) -> bytes:
    kind = draw(st.sampled_from(["cut", "flip", "noise", "empty"]))
    if kind == "cut":
        return data[: draw(st.integers(0, len(data) - 1))]
    if kind == "flip":
        at = draw(st.integers(0, len(data) - 1))
        return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    return draw(st.binary(max_size=300)) if kind == "noise" else b""


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_one_line(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"good{suffix}"
    network = generator(blocks=1, width=2)
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        weights.save(path, network, name="good", recipe={})
    bad = tmp_path / f"bad{suffix}"
    bad.write_bytes(damaged(path.read_bytes(), data.draw))
    try:
        model = weights.load(bad)
    except SRGANFastError as error:
        assert "\n" not in str(error)  # noqa: PT017  (reading may also succeed)
    else:
        # A flipped bit may sit in padding or in the pickle's unused parts; ours carry digests and cannot differ.
        if suffix == ".safetensors":
            assert model.info == weights.load(path).info


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
