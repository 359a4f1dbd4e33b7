"""What a Hopper GPU says when a network is first used on it: layouts, checks of kernels, choices, and how long it took.

usage: python -m srgan_fast.bench.probe MODEL DEVICE WIDTHxHEIGHT...   prints one line of JSON, last
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from srgan_fast.bench.child import last_words
from srgan_fast.bench.device import synchronise
from srgan_fast.errors import SRGANFastError
from srgan_fast.kernels import hopper, nvrtc
from srgan_fast.kernels.conv3x3 import sm90
from srgan_fast.upscaler import Upscaler


def first_use(model: str, device: str, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """Upscale a frame of each size with the fused backend in fp16, as the first thing that this process does.

    Units:  `first_use_s` the seconds until the last result is there, all compilers included
    Raises: SRGANFastError where kernels for sm_90a do not run
    """
    where = torch.device(device)
    runtime = hopper.runtime_for(where)
    if runtime is None:
        raise SRGANFastError(f"expected a Hopper GPU: {hopper.why_not(where)}")
    random = torch.Generator(device).manual_seed(0)
    start = time.perf_counter()
    upscaler = Upscaler(model, backend="fused", device=device, precision="fp16")
    for width, height in sizes:
        shape = (1, height, width, 3)
        frames = torch.randint(0, 256, shape, device=device, dtype=torch.uint8, generator=random)
        upscaler(frames, layout="NHWC")
    synchronise(device)
    seconds = time.perf_counter() - start
    layout = sm90.preferred_layout(runtime)
    return {
        "first_use_s": seconds,
        "layout": None if layout is None else layout.value,
        "wrong_values": {layout.value: count for layout, count in sm90.wrong_values(runtime).items()},
        "nvrtc": nvrtc.version(),
        "checks": hopper.checks(where),
        "choices": hopper.choices(where),
    }


def measure(model: str, device: str, sizes: list[tuple[int, int]], cache: Path) -> dict[str, Any]:
    """The first use in two processes, one after the other, over caches of compiled kernels in an empty folder.

    Returns what a record of it keeps as raw.

    Raises:  SRGANFastError with the last words of a process that failed
    """
    environment = {**os.environ, "SRGAN_FAST_CACHE": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
    command = [sys.executable, "-m", __spec__.name, model, device, *(f"{width}x{height}" for width, height in sizes)]
    found = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SRGANFastError(f"the first use of {model} ended with {done.returncode} ({last_words(done)})")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    cold, warm = found
    checks = warm.pop("checks")
    return {
        **warm,
        "outcomes": {kernel: said is None for kernel, said in checks.items()},
        "failures": [said for said in checks.values() if said],
        "first_use_s": {"empty cache": cold["first_use_s"], "full cache": warm["first_use_s"]},
    }


def main(arguments: list[str]) -> int:
    """What a process of its own does for `measure`."""
    model, device, *sizes = arguments
    pairs = [(int(width), int(height)) for width, _, height in (size.partition("x") for size in sizes)]
    try:
        print(json.dumps(first_use(model, device, pairs)))
    except SRGANFastError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
