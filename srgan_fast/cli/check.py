"""srgan-fast check: what this machine has, which backends run and why others do not, and a parity self-test."""

from __future__ import annotations

import itertools
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from srgan_fast import __version__
from srgan_fast.errors import ParityError

# The kernel's names of what decides the speed of a convolution here.
_CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")

_ABSENT = "not installed"
# What those do that need not be there.
_OPTIONAL = {
    "triton": "GPU kernels need it",
    "onnx": "exports and what runs them need it",
    "onnxruntime": "the backend onnx needs it",
    "openvino": "the backend of that name needs it",
    "tensorrt": "the backend of that name needs it",
}


def check(
    report: Annotated[
        bool, typer.Option("--report", help="Compare every kernel with its reference too: a text to paste in an issue.")
    ] = False,
) -> None:
    """Say what this machine has and which backends run here, and prove that the fast paths equal the reference."""
    import torch

    from srgan_fast import weights
    from srgan_fast.backends import BACKENDS
    from srgan_fast.backends.probe import Ok

    print(f"srgan-fast {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "triton", "onnx", "onnxruntime", "openvino", "tensorrt", "av", "numpy", "pillow"):
        said = version_of(package)
        only = f"; only {_OPTIONAL[package]}" if said == _ABSENT and package in _OPTIONAL else ""
        print(f"{package} {said}{only}")
    features = _cpu_features() or torch.backends.cpu.get_cpu_capability()
    amx = "yes" if torch.cpu._is_amx_tile_supported() else "no"
    print(f"CPU: {features}; {torch.get_num_threads()} threads; AMX {amx}, so --precision auto is", end=" ")
    print("bf16" if amx == "yes" else "fp32 (srgan-fast bench says what bf16 would give)")
    if torch.cuda.is_available():
        capability = "".join(map(str, torch.cuda.get_device_capability()))
        print(f"GPU: {torch.cuda.get_device_name()}, sm_{capability}, CUDA {torch.version.cuda}")
    elif torch.version.cuda is None:
        print("GPU: this torch is built without CUDA; for an NVIDIA GPU install torch from pytorch.org's CUDA index")
    else:
        print("GPU: none that torch sees; look at nvidia-smi and CUDA_VISIBLE_DEVICES")
    for name in weights.bundled():
        print(f"model {name}: digest {weights.load(name).info.digest[:16]}")
    for name, entry in BACKENDS.items():
        answer = entry.probe(_devices()[-1])
        said = "available" if isinstance(answer, Ok) else f"not available: {answer.reason}; {answer.fix}"
        print(f"backend {name}: {said}")
    for line in _kernels():
        print(line)
    failed = [name for device in _devices() for name, passed in _parity(device) if not passed]
    failed += [name for name, passed in (*_exported_parity(), *_fused_parity(), *_tensorrt_parity()) if not passed]
    if report:
        failed += [name for name, passed in _op_parity() if not passed]
    if failed:
        raise ParityError(
            f"expected every path to equal its reference, these do not: {', '.join(failed)};"
            " use --precision fp32 and report the lines above"
        )


def version_of(package: str) -> str:
    """The version of a package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return _ABSENT


def _cpu_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return " ".join(name for name in _CPU_FEATURES if name in flags)


def _devices() -> list[str]:
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _kernels() -> list[str]:
    """Which implementation the ops have here, and why not a faster one; ops that fare alike share a line."""
    import torch

    from srgan_fast import kernels

    alike: dict[str, list[str]] = {}
    for op in kernels.OPS:
        reasons = kernels.implementations(op, torch.device(_devices()[-1]))
        runs = next(name for name, reason in reasons.items() if reason is None)
        faster = [f"not {name}: {reason}" for name, reason in reasons.items() if reason is not None]
        alike.setdefault("; ".join([f"by {runs}", *faster]), []).append(op)
    return [f"kernels {', '.join(ops)}: {said}" for said, ops in alike.items()]


def _parity(device: str) -> list[tuple[str, bool]]:
    """Print and return, for each path on a device, whether it holds: the tolerance rule, then the exact cuts."""
    import copy

    import torch

    from srgan_fast.backends.eager import EagerBackend
    from srgan_fast.community import bounds
    from srgan_fast.kernels.parity import compare
    from srgan_fast.upscaler import Upscaler
    from srgan_fast.weights import load

    model = load("srresnet_x4")
    low, high = (bound.double() for bound in bounds(model.info.output_range))
    # Taller than a tile with the halo on both sides, so that the cuts do cut.
    height, width, tile = 133, 17, 24
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    depth = sum(isinstance(module, torch.nn.Conv2d) for module in model.network.modules())
    # Folded and blocked convolutions sum in another order, which costs each layer about one rounding of its float32
    # sums, in every precision.
    floor = depth * torch.finfo(torch.float32).eps
    outcomes: list[tuple[str, bool]] = []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rounded = lr.to(dtype)
        frame = rounded.float().permute(0, 2, 3, 1).contiguous().to(device)
        backend = EagerBackend(model, device, precision)
        whole, banded = (torch.empty(1, height * 4, width * 4, 3, device=device) for _ in range(2))
        backend.run(frame, whole, band=height)
        backend.run(frame, banded, band=16)
        # The reference runs on the CPU whatever the device: one truth for all.
        with torch.inference_mode():
            truth, plain = (
                ((copy.deepcopy(model.network).to(kind)(rounded.to(kind)).double() - low) / (high - low)).clamp(0, 1)
                for kind in (torch.float64, dtype)
            )
        report = compare(whole.permute(0, 3, 1, 2).cpu(), plain, truth, dtype, floor=floor)
        print(f"parity eager {precision} on {device}: {report}")
        outcomes.append((f"eager {precision} on {device}", report.passed))
        tiled = Upscaler(model, backend="eager", device=device, precision=precision, tile=tile)(frame, layout="NHWC")
        for cut, result in (("banded", banded), ("tiled", tiled)):
            # 0, or 1e-5 where the shape of a piece selects another convolution in the library. On a GPU that is the
            # rule, and in bf16 another convolution rounds otherwise as often as plain PyTorch does.
            allowed = report.max_allowed if (device, precision) == ("cuda", "bf16") else 1e-5
            difference = float((result - whole).abs().max())
            passed = difference <= allowed
            print(
                f"parity {cut} {precision} on {device}: {'pass' if passed else 'FAIL'}: largest difference from uncut"
                f" {difference:.2e} (allowed {allowed:.2e})"
            )
            outcomes.append((f"{cut} {precision} on {device}", passed))
    return outcomes


def _exported_parity() -> list[tuple[str, bool]]:
    """Print and return, for each backend and precision that runs the exported graph on a CPU, whether it passes."""
    from srgan_fast.backends import onnx, openvino
    from srgan_fast.backends.probe import Unavailable
    from srgan_fast.backends.selfcheck import Disagrees
    from srgan_fast.errors import BackendUnavailable
    from srgan_fast.weights import load

    ways = [(openvino.probe, openvino.OpenVINOBackend, precision) for precision in ("fp32", "bf16")]
    outcomes = []
    for probe, create, precision in (*ways, (onnx.probe, onnx.ONNXBackend, "fp32")):
        if isinstance(probe("cpu"), Unavailable):
            continue
        try:
            backend = create(load("srresnet_x4"), "cpu", precision)
            said, passed = "; ".join(map(str, backend.check)), True
        except BackendUnavailable as error:
            # What this CPU or this build of a library does not have is no fault.
            passed = not isinstance(error, Disagrees)
            said = f"not available: {error}" if passed else f"FAIL: {error}"
        print(f"parity {create.name} {precision} on cpu: {said}")
        outcomes.append((f"{create.name} {precision}", passed))
    return outcomes


def _fused_parity() -> list[tuple[str, bool]]:
    """Print and return, for each precision of the fused backend, whether its self-check passes on this GPU."""
    from srgan_fast.backends import fused
    from srgan_fast.backends.probe import Unavailable
    from srgan_fast.errors import BackendUnavailable
    from srgan_fast.weights import load

    device = _devices()[-1]
    if isinstance(fused.probe(device), Unavailable):
        return []
    outcomes = []
    for precision in ("fp16", "bf16", "fp32", "int8"):
        try:
            said = [str(outcome) for outcome in fused.FusedBackend(load("srresnet_x4"), device, precision).check]
            print(f"parity fused {precision} on {device}: {'; '.join(said)}")
            outcomes.append((f"fused {precision}", True))
        except BackendUnavailable as error:
            print(f"parity fused {precision} on {device}: FAIL: {error}")
            outcomes.append((f"fused {precision}", False))
    return outcomes


def _tensorrt_parity() -> list[tuple[str, bool]]:
    """Print and return, for each precision in which engines for this GPU are kept, whether they pass the self-check."""
    from srgan_fast.backends import tensorrt
    from srgan_fast.backends.probe import Unavailable
    from srgan_fast.errors import BackendUnavailable
    from srgan_fast.tensorrt import engines
    from srgan_fast.weights import load

    device = _devices()[-1]
    if isinstance(tensorrt.probe(device), Unavailable):
        return []
    model, outcomes = load("srresnet_x4"), []
    for precision in tensorrt.PRECISIONS:
        pair = engines.find(model, precision, device)
        if isinstance(pair, engines.Missing):
            print(f"parity tensorrt {precision} on {device}: not known: {pair.reason}; {pair.fix}")
            continue
        try:
            said = [str(outcome) for outcome in tensorrt.TensorRTBackend(model, device, precision, pair=pair).check]
            by_auto = "taken by auto" if pair.entry.why_not_auto is None else f"not by auto: {pair.entry.why_not_auto}"
            print(f"parity tensorrt {precision} on {device}: {'; '.join(said)}; {by_auto}")
            outcomes.append((f"tensorrt {precision}", True))
        except BackendUnavailable as error:
            print(f"parity tensorrt {precision} on {device}: FAIL: {error}")
            outcomes.append((f"tensorrt {precision}", False))
    return outcomes


def _op_parity() -> list[tuple[str, bool]]:
    """Print and return, for each op, implementation and dtype, whether all cases pass on the best device here."""
    import torch

    from srgan_fast import kernels
    from srgan_fast.kernels import hopper
    from srgan_fast.kernels.parity import check_op

    device = _devices()[-1]
    dtypes = (torch.float16, torch.bfloat16, torch.float32) if device == "cuda" else (torch.float32,)
    outcomes = []
    for op in kernels.OPS:
        ways = kernels.implementations(op, torch.device(device))
        # The reference is the measure: it is held against itself only where nothing else runs.
        run = [name for name, reason in ways.items() if reason is None and name != "reference"] or ["reference"]
        for runs, dtype in itertools.product(run, dtypes):
            with kernels.only(runs):
                reports = check_op(op, device, dtype)
            worst = max(report.max_error / (report.max_allowed or 1) for _, report in reports)
            failing = [case for case, report in reports if not report.passed]
            word = f"FAIL: {', '.join(failing)}" if failing else "pass"
            said = str(dtype).removeprefix("torch.")
            print(
                f"op {op} {said} on {device} by {runs}: {word}; {len(reports)} cases, worst at {worst:.0%} of allowed"
            )
            outcomes.append((f"op {op} {said} by {runs}", not failing))
    # A kernel that fails its own check is replaced, so its op's cases pass: it is a fault all the same.
    for said in hopper.failures(torch.device(device)):
        print(f"kernel for sm_90: FAIL: {said}")
        outcomes.append((f"a kernel for sm_90 ({said.split(' ')[0]})", False))
    return outcomes
