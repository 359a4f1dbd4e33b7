"""srgan-fast check: what this machine has, which backends run and why others do not, and a parity self-test."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from srgan_fast import __version__
from srgan_fast.errors import ParityError


def check() -> None:
    """Say what this machine has and prove, on it, that the fast paths equal the reference."""
    import torch

    from srgan_fast.backends import BACKENDS
    from srgan_fast.backends.probe import Ok

    print(f"srgan-fast {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "triton", "av", "numpy", "pillow"):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} not installed")
    amx = "yes" if torch.cpu._is_amx_tile_supported() else "no: bf16 will not be faster here"
    print(f"CPU: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, AMX {amx}")
    if torch.cuda.is_available():
        print(f"GPU: {torch.cuda.get_device_name()}, sm_{''.join(map(str, torch.cuda.get_device_capability()))}")
    else:
        print("GPU: none that torch sees")
    for name, entry in BACKENDS.items():
        answer = entry.probe()
        said = "available" if isinstance(answer, Ok) else f"not available: {answer.reason}; {answer.fix}"
        print(f"backend {name}: {said}")
    failed = [name for name, passed in _parity() if not passed]
    if failed:
        raise ParityError(f"expected every path to equal its reference, these do not: {', '.join(failed)}")


def _parity() -> list[tuple[str, bool]]:
    import torch

    from srgan_fast.backends.eager import EagerBackend
    from srgan_fast.kernels.parity import compare
    from srgan_fast.upscaler import Upscaler
    from srgan_fast.weights import load

    model = load("srresnet_x4")
    lr = torch.rand(1, 3, 37, 29, generator=torch.Generator().manual_seed(0))
    plain_network = model.network
    outcomes = []
    with torch.inference_mode():
        double = load("srresnet_x4").network.double()
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            rounded = lr.to(dtype)
            truth = (double(rounded.double()).clamp(-1, 1) + 1) / 2
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                plain = (plain_network(rounded.float()).double().clamp(-1, 1) + 1) / 2
            backend = EagerBackend(model, "cpu", precision)
            out = torch.empty(1, 37 * 4, 29 * 4, 3)
            backend.run(rounded.float().permute(0, 2, 3, 1).contiguous(), out, band=16)
            layers = sum(isinstance(module, torch.nn.Conv2d) for module in plain_network.modules())
            report = compare(out.permute(0, 3, 1, 2), plain, truth, dtype, layers=layers)
            print(f"parity eager {precision}: {report}")
            outcomes.append((f"eager {precision}", report.passed))
        whole = Upscaler(model, precision="fp32")(lr)
        tiled = Upscaler(model, precision="fp32", tile=16)(lr)
        difference = float((whole - tiled).abs().max())
        print(f"parity tiled: largest difference from untiled {difference:.1e} (allowed 1e-05)")
        outcomes.append(("tiled", difference <= 1e-5))
    return outcomes
