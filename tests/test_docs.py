"""What the documents show works: their examples are run, line by line, on small stand-ins for the files they name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
import torch
import typer
from clips import make
from conftest import ROOT
from layouts import DIALECTS, foreign
from PIL import Image
from raters import simulate
from torch.distributed.run import get_args_parser

from srgan_fast.cli import app
from srgan_fast.errors import Interrupted
from srgan_fast.evaluate.mos import study as mos_study
from srgan_fast.evaluate.mos.store import Store
from srgan_fast.export import onnx_bytes
from srgan_fast.features import VGG19
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.weights import load, save

Run = Callable[..., tuple[int, str, str]]

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(.*?)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What an example would take hours for, made short by options behind its own.
SHORTER = {
    "train": ("--steps", 1, "--batch", 1, "--crop", 32, "--width", 4),  # not --blocks, in which --init has to fit
    "pack": ("--smallest", 32),
    "bench": ("--size", "16x16", "--runs", 1),
    "bench video": ("--size", "16x16", "--runs", 1, "--frames", 3),
    "calibrate": ("--limit-db", 1),  # the stand-ins are noise, which no scale suits
    # On the double of TensorRT, for which a CPU passes for a GPU.
    "trt build": ("--device", "cpu"),
    "trt check": ("--device", "cpu"),
    "trt clean": ("--device", "cpu"),
    "trt list": ("--device", "cpu"),
    "mos analyse": ("--simulation",),
}


def blocks(language: str) -> list[Any]:
    """The fenced blocks of a language, named by document and line."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for match in FENCE.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[2], id=f"{path.name}:{line}"))
    return found


def picture(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(exist_ok=True)
    coarse = np.random.default_rng(len(path.name)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height)).save(path)


def checkpoint(path: Path) -> None:
    """A small generator as another project saves it."""
    torch.manual_seed(0)
    config, _ = DIALECTS["leftthomas"]
    torch.save(foreign("leftthomas", Generator(GeneratorConfig(blocks=2, width=8, **config))), path)


def onnx_file(path: Path) -> None:
    """A small model as `srgan-fast export` writes it."""
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(blocks=1, width=8)).eval().requires_grad_(False)
    save(path.with_suffix(".safetensors"), network, name="small", recipe={})
    path.write_bytes(onnx_bytes(load(path.with_suffix(".safetensors"))))


def vgg19(path: Path) -> None:
    """All of VGG19's layers up to phi_{5,4}, one random number a channel: the file takes kilobytes, not 548 MB."""
    torch.manual_seed(0)
    with torch.device("meta"):
        layers = VGG19(5, 4).state_dict()
    tensors = {}
    for key, value in layers.items():
        numbers = torch.randn(len(value)) / value[0].numel()  # maps of a size that a gradient survives
        tensors[key] = numbers.view(-1, *[1] * (value.ndim - 1)).expand(value.shape)
    torch.save(tensors, path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader of the documents stands, with the files that the examples start from."""
    picture(tmp_path / "photo.jpg", 9, 11)
    picture(tmp_path / "photo.png", 9, 11)
    for place in ("photos", "Set5"):
        picture(tmp_path / place / "a.png", 48, 40)
        picture(tmp_path / place / "bc.png", 40, 44)
    picture(tmp_path / "srcnn" / "a.png", 48, 40)
    picture(tmp_path / "srcnn" / "bc.png", 40, 44)
    for name in ("other.png", "another.png"):
        picture(tmp_path / "others" / name, 40, 40)
    make(tmp_path / "clip.mp4", size=(16, 16), times=range(3))
    checkpoint(tmp_path / "SRGAN.pth")
    checkpoint(tmp_path / "netG.pth")
    vgg19(tmp_path / "vgg19.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def engines(folder: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A double of TensorRT, and engines that are judged at a small size, for which threads would only wait."""
    fake_tensorrt.install(monkeypatch)
    monkeypatch.setenv("SRGAN_FAST_CACHE", str(folder / "cache"))
    monkeypatch.setattr("srgan_fast.bench.engine.sizes_of", lambda options: [(8, 8)])
    monkeypatch.setattr("srgan_fast.bench.engine._RUNS", 1)


def rate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens while the page is shown: two raters come, and then Ctrl-C."""
    study = mos_study.load(folder)
    with Store(study.ratings_file, study) as store:
        for score in (3, 4):
            simulate(study, store, lambda showing, score=score: score)  # type: ignore[misc]
    monkeypatch.setattr("srgan_fast.evaluate.mos.server.serve", lambda app, listener, stop: None)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_block_is_run() -> None:
    languages = set()
    for path in DOCUMENTS:
        matches = list(FENCE.finditer(path.read_text()))
        assert path.read_text().count("```") == 2 * len(matches), (
            f"{path.name}: a block that stands where none is found"
        )
        languages |= {match[1] for match in matches}
    # Those in C and CMake are test_library's.
    assert languages == {"sh", "python", "c", "cmake"}, "a block of another language needs a test here"


@pytest.mark.parametrize("block", blocks("python"))
def test_python(block: str, folder: Path) -> None:
    for name in re.findall(r"\w+\.onnx", block):
        onnx_file(folder / name)
    exec(compile(block, "example", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", blocks("sh"))
def test_sh(
    block: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Line after line, because later ones use what earlier ones made."""
    if "srgan-fast trt " in block:
        request.getfixturevalue("engines")
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "make":
            assert set(words[1:]) <= targets(), line
            continue
        if words[0] in ("cmake", "ctest"):
            continue  # test_library builds by these, where there is nvcc
        if words[0] == "torchrun":
            # Its own options by its own parser; what it would start, as a single rank.
            started = get_args_parser().parse_args(words[1:])
            assert (started.module, started.training_script) == (True, "srgan_fast"), line
            words = ["srgan-fast", *started.training_script_args]
        assert words[0] == "srgan-fast", f"no test knows how to run: {line}"
        if words[1:3] == ["mos", "serve"]:
            rate(folder / words[3], monkeypatch)
            assert run(*words[1:])[0] == Interrupted.exit_code
            continue
        code, _, err = run(*words[1:], *SHORTER.get(" ".join(words[1:3]), SHORTER.get(words[1], ())))
        assert code == 0, f"{line}\n{err}"
        for word in words[2:]:
            if word.endswith("/") or re.fullmatch(r"[\w/]+\.\w+", word):
                assert (folder / word).exists(), f"{word} is not there after: {line}"


def test_commands_named_in_the_text_exist() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    named = 0
    for path in DOCUMENTS:
        for span in re.findall(r"`srgan-fast ([^`]+)`", FENCE.sub("", path.read_text())):
            name, *words = span.split()
            assert name in commands, f"{path.name}: {span}"
            command = commands[name]
            if hasattr(command, "commands") and words:
                assert words[0] in command.commands, f"{path.name}: {span}"
                command = command.commands[words[0]]
            known = {name for parameter in command.params for name in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, f"{path.name}: {span}"
            named += 1
    assert named
