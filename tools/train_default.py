"""Train the weights that the package ships, in slices that may be cut off anywhere: `make train-default`.

usage: python tools/train_default.py PHOTOS OUT [--device auto|cpu|cuda] [--slice-s 480] [--slices N] [--only NAME]
           [--vgg-weights FILE | --squeezenet-weights FILE] [--hr FOLDER [--lr FOLDER]]

Three models, one after another, each in a folder of its own under OUT: srresnet_x4, srgan_x4 from it, and
srresnet_x4_small. A slice is one `srgan-fast train` with a time limit; the next one goes on from its checkpoint to the
bit, and so does the next call of this script. A model that is done is scored on --hr in every protocol.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Stage:
    """One model: how `srgan-fast train` makes it on a CPU and on a GPU, and the model that it starts from."""

    name: str
    cpu: tuple[str, ...]
    cuda: tuple[str, ...]
    start: str | None = None


# On a CPU hours are all there is: srresnet_x4 goes on from the weights that ship, the others are short. A GPU has the
# time for the paper's number of samples, from nothing.
_LONG = ("--preset", "cpu-srresnet-mse", "--batch", "16", "--steps", "300000", "--learning-rate", "4e-4")
STAGES = (
    Stage(
        "srresnet_x4",
        cpu=(
            *("--preset", "cpu-srresnet-mse", "--init", "srresnet_x4"),
            *("--steps", "10000", "--learning-rate", "4e-4", "--seed", "2"),
        ),
        cuda=(*_LONG, "--seed", "1"),
    ),
    Stage(
        "srgan_x4",
        cpu=("--preset", "paper-srgan-mse", "--batch", "8", "--steps", "1500", "--precision", "bf16", "--seed", "4"),
        cuda=("--preset", "paper-srgan-mse", "--steps", "100000", "--seed", "4"),
        start="srresnet_x4",
    ),
    Stage(
        "srresnet_x4_small",
        cpu=("--preset", "cpu-srresnet-mse", "--blocks", "5", "--steps", "9000", "--seed", "3"),
        cuda=(*_LONG, "--blocks", "5", "--seed", "3"),
    ),
)


def main() -> int:
    """Train what is not made yet, slice by slice, and score it; the exit code of the slice that failed."""
    asked = _arguments()
    device = asked.device if asked.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    left = asked.slices
    for stage in STAGES:
        if asked.only not in (None, stage.name):
            continue
        folder = asked.out / stage.name
        made = folder / f"{stage.name}.safetensors"
        while not made.exists():
            if left == 0:
                print(f"{asked.slices} slices done; the same command goes on with {stage.name}")
                return 0
            left -= 1
            code = _slice(stage, folder, device, asked)
            if code != 0:
                return code
        if asked.hr is not None:
            _score(stage.name, made, asked.hr, asked.lr)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the weights that the package ships, in slices.")
    parser.add_argument("photos", type=Path, help="a folder of HR photos, or a pack of them")
    parser.add_argument("out", type=Path, help="the folder of the runs")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--slice-s", type=float, default=480.0, help="seconds of one slice")
    parser.add_argument("--slices", type=int, default=-1, help="stop after so many slices; all without it")
    parser.add_argument("--only", choices=[stage.name for stage in STAGES], help="one model alone")
    features = parser.add_mutually_exclusive_group()
    features.add_argument("--vgg-weights", type=Path, help="torchvision's vgg19 file: srgan_x4 by VGG54, as the paper")
    features.add_argument("--squeezenet-weights", type=Path, help="the stand-in for VGG where there is none")
    parser.add_argument("--hr", type=Path, help="images to score on, such as Set5/")
    parser.add_argument("--lr", type=Path, help="their LR; made from them otherwise")
    return parser.parse_args()


def _slice(stage: Stage, folder: Path, device: str, asked: argparse.Namespace) -> int:
    """Train a model for the time of a slice; the exit code of that."""
    options = [*(stage.cuda if device == "cuda" else stage.cpu), "--device", device, "--name", stage.name]
    if stage.start is not None:
        options += ["--init", str(asked.out / stage.start / f"{stage.start}.safetensors"), *_content(asked)]
    if any(folder.glob("step_*.ckpt")):
        options.append("--resume")
    options += ["--time-limit", str(asked.slice_s)]
    if asked.hr is not None:
        options += ["--validation", str(asked.hr)]
    return subprocess.run([sys.executable, "-m", "srgan_fast", "train", asked.photos, folder, *options]).returncode


def _content(asked: argparse.Namespace) -> tuple[str, ...]:
    """The perceptual loss: VGG54 as in the paper, or the stand-in with the weights of the terms that suit it."""
    if asked.vgg_weights is not None:
        return ("--content", "vgg54", "--vgg-weights", str(asked.vgg_weights))
    if asked.squeezenet_weights is not None:
        named = ("--content", "squeezenet", "--squeezenet-weights", str(asked.squeezenet_weights))
        return (*named, "--vgg-reduction", "mean", "--adversarial-weight", "0.3", "--pixel-weight", "1000")
    sys.exit("train_default: srgan_x4 needs a perceptual loss; give --vgg-weights or --squeezenet-weights")


def _score(name: str, file: Path, hr: Path, lr: Path | None) -> None:
    """Print the scores of a model in every protocol."""
    command = [sys.executable, "-m", "srgan_fast", "evaluate", hr, "--weights", file]
    command += ["--protocol", "y601,paper,rgb", "--precision", "fp32", "--json", "-"]
    if lr is not None:
        command += ["--lr", lr]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    scores = json.loads(done.stdout)["mean"]
    said = ", ".join(f"{key} {value['psnr_db']:.3f} dB / {value['ssim']:.4f}" for key, value in scores.items())
    print(f"{name}: {said}")


if __name__ == "__main__":
    sys.exit(main())
