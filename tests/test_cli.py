"""The command line as a user meets it: real files in, real files out, one line and an exit code for a mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from conftest import ROOT
from PIL import Image

from srgan_fast import weights
from srgan_fast.cli import app

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(path)
    return path


def test_upscale_a_file(run: Run, photo: Path, tiny: Path, tmp_path: Path) -> None:
    code, out, _ = run("upscale", photo, tmp_path / "out.png", "--weights", tiny)
    assert code == 0
    assert " on cpu)" in out
    with Image.open(tmp_path / "out.png") as result:
        assert result.size == (44, 36)


def test_upscale_a_folder_and_resume(run: Run, photo: Path, tiny: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "deeper").mkdir(parents=True)
    for name in ("a.png", "deeper/b.png"):
        (source / name).write_bytes(photo.read_bytes())
    (source / "bad.png").write_bytes(b"not an image")
    code, _, err = run("upscale", source, target, "--weights", tiny)
    assert code == 2
    assert "bad.png" in err
    before = (target / "a.png").stat().st_mtime_ns
    (source / "bad.png").unlink()
    code, _out, err = run("upscale", source, target, "--weights", tiny)
    assert code == 0
    assert (target / "a.png").stat().st_mtime_ns == before
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*.png")) == ["a.png", "deeper/b.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("upscale", "none.png", "out.png"), 2, "does not exist"),
        (("upscale", "in.png", "in.png"), 2, "the same"),
        (("upscale", "in.png", "out.gif"), 2, "out.gif"),
        (("upscale", "in.png", "no/out.png"), 4, "make it first"),
        (("upscale", "in.png", "out.png", "--model", "nothing"), 2, "srresnet_x4"),
        (("upscale", "in.png", "out.png", "--weights", "in.png"), 5, "safetensors"),
        (("upscale", "in.png", "out.png", "--scale", "2"), 2, "scale 4"),
        (("upscale", "in.png", "out.png", "--backend", "magic"), 2, "eager"),
        (("upscale", "in.png", "out.png", "--precision", "fp16"), 3, "fp32"),
        (("upscale", "in.png", "out.png", "--memory", "lots"), 2, "2G"),
        (("upscale", "in.png", "out.png", "--memory", "1M"), 7, "--memory"),
        (("upscale", "clip.mp4", "out.mp4"), 2, "does not exist"),
        (("upscale", "in.png"), 2, "OUT"),
        (("convert", "in.png", "out.safetensors"), 5, "weights"),
        (("convert", "in.png", "out.pth"), 2, ".safetensors"),
        (("evaluate", "none"), 2, "folder"),
        (("train", "none", "run"), 2, "existing folder"),
        (("train", "none", "run", "--preset", "magic"), 2, "paper-srgan-vgg54"),
        (("bench", "--size", "big"), 2, "480x270"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, said: str
) -> None:
    monkeypatch.chdir(photo.parent)
    got, _, err = run(*arguments)
    assert got == code, err
    assert said in err
    assert sorted(path.name for path in photo.parent.iterdir() if path.name != "run") == ["in.png"]


def test_convert(run: Run, tiny: Path, tmp_path: Path) -> None:
    network = weights.load(tiny).network
    torch.save({"state_dict": network.state_dict()}, tmp_path / "foreign.pth")
    code, out, _ = run("convert", tmp_path / "foreign.pth", tmp_path / "ours.safetensors")
    assert code == 0
    assert "SRResNet family" in out
    assert weights.load(tmp_path / "ours.safetensors").info.scale == 4


def test_train_evaluate_upscale(run: Run, tmp_path: Path) -> None:
    """The whole way of a user who trains: photographs -> weights -> a score -> a picture."""
    photos = tmp_path / "photos"
    photos.mkdir()
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    coarse.resize((64, 56)).save(photos / "a.png")
    shape = ("--blocks", 1, "--width", 4, "--crop", 32, "--batch", 1, "--steps", 3)
    code, out, err = run("train", photos, tmp_path / "run", *shape, "--validation", photos, "--validate-every", 2)
    assert code == 0, err
    trained = tmp_path / "run" / "model.safetensors"
    code, out, err = run("evaluate", photos, "--weights", trained, "--json", "-")
    assert code == 0, err
    assert json.loads(out)["mean"]["y601"]["psnr_db"] > 0
    code, _, err = run("upscale", photos / "a.png", tmp_path / "sr.png", "--weights", trained)
    assert code == 0, err


def test_check_passes_here(run: Run) -> None:
    code, out, err = run("check")
    assert code == 0, err
    assert "backend eager: available" in out
    parity = [line for line in out.splitlines() if line.startswith("parity ")]
    cuts = [line for line in parity if line.split()[1] in ("eager", "banded", "tiled")]
    assert len(cuts) == 6
    assert all(": pass" in line for line in cuts)
    assert not any("FAIL" in line for line in parity)
    assert "FAIL" not in out


def commands(command: Any, name: str = "srgan-fast") -> Iterator[tuple[str, Any]]:
    yield name, command
    for key, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {key}")


@pytest.mark.parametrize(("name", "command"), list(commands(typer.main.get_command(app))))
def test_help_is_sentences_and_says_defaults(name: str, command: Any) -> None:
    first = command.help.partition("\n\n")[0]
    assert (first[0].isupper(), first[-1]) == (True, "."), first
    pages = re.findall(r"[\w/]+\.md", command.epilog or "")
    assert pages or name.count(" ") == 2, "it names no page of the docs"
    assert all((ROOT / page).is_file() for page in pages), pages
    for option in command.params:
        if option.name != "help":
            said = option.help
            # What is in brackets would be taken for a style, and vanish.
            assert (said[0].isupper(), said[-1], "[" in said) == (True, ".", False), (option.name, said)


COMMAND = [sys.executable, "-c", "from srgan_fast.cli import main; main()"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["data", "list"], ["--help"], ["convert", "{tiny}", "{folder}/out.safetensors"]])
def test_what_is_printed_onto_a_full_disk(arguments: list[str], tiny: Path, tmp_path: Path) -> None:
    words = [each.format(tiny=tiny, folder=tmp_path) for each in arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1), done.stderr
    assert "No space left" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["evaluate", "{}"], ["convert", "{}", "out.safetensors"], ["upscale", "{}", "o.png"]]
)
def test_a_file_that_may_not_be_looked_at(
    run: Run, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path.exists and is_dir of Python 3.11 raise PermissionError for what lies in a folder that may not be entered."""
    plain = Path.stat

    def stat(path: Path, **options: bool) -> object:
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    code, _, err = run(*(each.format(tmp_path / "locked.png") for each in arguments))
    assert (code, err.count("\n")) == (2, 1), err
    assert "Permission denied" in err


def test_a_stop_is_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "convert", stopped)
    assert run("convert", "in.pth", tmp_path / "out.safetensors") == (130, "", "srgan-fast: stopped\n")


def test_train_refuses_a_name_with_a_folder(run: Run, tmp_path: Path) -> None:
    code, _, err = run("train", tmp_path, tmp_path / "run", "--name", "a/b")
    assert code == 2
    assert "--name" in err
    assert not (tmp_path / "run").exists()


def test_the_kaggle_preset_reads_pairs_where_there_are_some(run: Run, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for folder, side in (("high", 48), ("low", 24)):
            (tmp_path / part / folder).mkdir(parents=True)
            Image.new("RGB", (side, side), (90, 60, side)).save(tmp_path / part / folder / "a.png")
    small = ("--preset", "kaggle-blur-x2", "--steps", 1, "--batch", 1, "--crop", 16, "--blocks", 1, "--width", 4)
    code, out, _ = run("train", tmp_path, tmp_path / "run", *small)
    assert code == 0
    assert "LR is read" in out
    assert "1 images, 0 skipped" in out
    code, out, _ = run("train", tmp_path, tmp_path / "made", *small, "--degradation", "gaussian")
    # Of the four: neither the LR images, nor those that the run is judged by.
    assert (code, "1 images, 0 skipped" in out) == (0, True)
