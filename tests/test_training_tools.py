"""The scripts that train: runs go on from each other, and nothing is done twice."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (120, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return folder


@pytest.mark.slow
def test_a_slice_goes_on_from_the_last(photos: Path, tmp_path: Path) -> None:
    asked = (photos, tmp_path / "runs", "--device", "cpu", "--only", "srresnet_x4_small", "--slices", "1")
    reached = []
    for _ in range(2):
        done = run_script("train_default.py", *asked, "--slice-s", "1")
        assert done.returncode == 0, done.stderr
        assert "the same command goes on with srresnet_x4_small" in done.stdout
        found = sorted((tmp_path / "runs" / "srresnet_x4_small").glob("step_*.ckpt"))
        reached.append(int(found[-1].stem.removeprefix("step_")))
    assert 0 < reached[0] < reached[1]


def test_an_srgan_needs_a_perceptual_loss(photos: Path, tmp_path: Path) -> None:
    done = run_script("train_default.py", photos, tmp_path / "runs", "--device", "cpu", "--only", "srgan_x4")
    assert done.returncode == 1
    assert "--vgg-weights or --squeezenet-weights" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_photos_that_are_none_end_the_script(tmp_path: Path) -> None:
    done = run_script("train_default.py", tmp_path / "none", tmp_path / "runs", "--device", "cpu")
    assert done.returncode == 2
    assert "expected a folder of images" in done.stderr


@pytest.mark.slow
def test_an_ablation_trains_each_depth_once_and_goes_on(photos: Path, tmp_path: Path) -> None:
    asked = (photos, tmp_path / "out", "--hr", photos, "--seeds", 1, "--steps", 2, "--blocks")

    def trained(*blocks: int) -> list[str]:
        done = run_script("ablate_depth.py", *asked, *blocks)
        assert done.returncode == 0, done.stderr
        return re.findall(r"trained 2 steps -> \S+/blocks_(\d)_seed_1/", done.stdout)

    assert trained(1) == ["1"]
    assert trained(1, 2) == ["2"]
    scores = json.loads((tmp_path / "out" / "depth.json").read_text())
    assert [one["network"]["blocks"] for one in scores] == [1, 2]
    assert 'id="depth"' in (tmp_path / "out" / "depth.html").read_text()
