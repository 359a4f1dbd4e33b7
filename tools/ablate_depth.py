"""Train SRResNets that differ in their depth alone, and score them: the depth ablation of docs/report.md.

usage: python tools/ablate_depth.py PHOTOS OUT --hr FOLDER [--lr FOLDER] [--blocks 5 8 16] [--seeds 1 2] [--steps N]

Every network sees the same batches as the others of its seed, for the same number of steps, from the same preset.
A network that is done is not trained again, and one that was interrupted goes on from its checkpoint. Then OUT holds
depth.json, the scores, and depth.html, the report.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Train what is not there yet, then score all of it."""
    asked = _arguments()
    methods = []
    for seed in asked.seeds:
        for blocks in asked.blocks:
            made = _train(asked, blocks, seed)
            methods += ["--method", f"{blocks} blocks, seed {seed}={made}"]
    command = ["evaluate", asked.hr, *methods, "--protocol", "y601"]
    if asked.lr is not None:
        command += ["--lr", asked.lr]
    _run(*command, "--json", asked.out / "depth.json", "--report", asked.out / "depth.html")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train SRResNets that differ in their depth alone, and score them.")
    parser.add_argument("photos", type=Path, help="a folder of HR photos, or a pack of them")
    parser.add_argument("out", type=Path, help="the folder of the runs, the scores and the report")
    parser.add_argument("--hr", type=Path, required=True, help="images to score on, such as Set5/")
    parser.add_argument("--lr", type=Path, help="their LR; made from them otherwise")
    parser.add_argument("--blocks", type=int, nargs="+", default=[5, 8, 16], help="residual blocks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="a network of each depth for each")
    parser.add_argument("--steps", type=int, default=3_000, help="steps of every network")
    return parser.parse_args()


def _train(asked: argparse.Namespace, blocks: int, seed: int) -> Path:
    """Train one network unless it is there; its weights."""
    folder = asked.out / f"blocks_{blocks}_seed_{seed}"
    made = folder / "model.safetensors"
    if not made.exists():
        options = ["--preset", "cpu-srresnet-mse", "--blocks", str(blocks), "--seed", str(seed)]
        if any(folder.glob("step_*.ckpt")):
            options.append("--resume")
        _run("train", asked.photos, folder, *options, "--steps", str(asked.steps))
    return made


def _run(*command: str | Path) -> None:
    """One command of srgan-fast; its exit code is that of this script if it fails."""
    code = subprocess.run([sys.executable, "-m", "srgan_fast", *command]).returncode
    if code != 0:
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())
