"""OpenVINO on the CPU: the exported graph, compiled once for a machine and kept on disk beside eager's picture.

The precision is always stated to the library, which by itself would take bfloat16 on some CPUs. Graphs are read from
memory. The library is kept from reporting its use, which it does when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srgan_fast import community, rewrite, weights
from srgan_fast import model as networks
from srgan_fast.backends import selfcheck
from srgan_fast.backends.eager import choose_precision
from srgan_fast.backends.exported import ExportedBackend, Run, imported, installed
from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.errors import BackendUnavailable
from srgan_fast.export import graph, parts
from srgan_fast.kept import Kept
from srgan_fast.weights import Model

_kept = Kept("openvino", "compiled models", 256 << 20)
_HINTS = {"fp32": "f32", "bf16": "bf16"}
_SOURCES = (graph, parts, networks, community, rewrite)


def probe(device: str) -> Ok | Unavailable:
    """Whether OpenVINO is installed, for a CPU; imports nothing of it."""
    if torch.device(device).type != "cpu":
        return Unavailable(f"it runs on the CPU, the device is {device}", "give --device cpu")
    return installed("openvino", "openvino", "onnx")


_TELEMETRY = "openvino_telemetry"


@cache
def _library() -> Any:
    """OpenVINO, with its package for telemetry out of sight, without which it sends nothing to its makers.

    What a program has imported itself before is left as it is.
    """
    hidden = _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        return imported("openvino", "openvino")
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]


@cache
def _core() -> Any:
    """The library's one core, kept while the process lives.

    Where a CPU has wide registers, a core gives the thread that makes it another stack for signals, and gives back what
    it found when it goes. Two that do not go in the reverse order leave one that is no longer mapped: the next signal,
    a Ctrl-C, is then a segmentation fault.
    """
    return _library().Core()


def _capabilities() -> list[str]:
    """What the library says this CPU computes in."""
    return list(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _lacking(precision: str) -> Unavailable | None:
    capabilities = _capabilities()
    if precision != "bf16" or "BF16" in capabilities:
        return None
    return Unavailable(
        f"OpenVINO has no bfloat16 on this CPU, which has {', '.join(capabilities)}", "take fp32, or the backend eager"
    )


def offer(model: Model, device: str, precision: str) -> OpenVINOBackend | Unavailable:
    """The backend for `auto`, where the library has the precision.

    Raises:  as the backend itself
    """
    return _lacking(choose_precision(precision, device)) or OpenVINOBackend(model, device, precision)


@dataclass(frozen=True)
class _Entry:
    """What is kept of a model: both parts as the library has compiled them, and eager's picture of the check's frames.

    `about` holds the arguments of `ExportedBackend` that are numbers.
    """

    about: dict[str, Any]
    trunk: bytes
    tails: dict[graph.Frames, bytes]
    want: Tensor

    def to_bytes(self) -> bytes:
        """The parts one after another, their sizes before them."""
        bodies: dict[str, bytes] = {"trunk": self.trunk, "want": self.want.numpy().tobytes()}
        bodies |= {str(kind): tail for kind, tail in self.tails.items()}
        head = {"about": self.about, "want": list(self.want.shape), "bytes": {k: len(v) for k, v in bodies.items()}}
        return json.dumps(head).encode() + b"\n" + b"".join(bodies.values())

    @staticmethod
    def from_bytes(content: bytes) -> _Entry:
        """The reverse."""
        line, body = content.split(b"\n", 1)
        head, bodies = json.loads(line), {}
        for key, size in head["bytes"].items():
            bodies[key], body = body[:size], body[size:]
        want = torch.frombuffer(bytearray(bodies["want"]), dtype=torch.float32).view(head["want"])
        return _Entry(head["about"], bodies["trunk"], {kind: bodies[kind] for kind in graph.FRAMES}, want)


class OpenVINOBackend(ExportedBackend):
    """A model's parts as OpenVINO compiles them for this CPU; any size of frame, with torch's number of threads.

    Raises:  UsageError for an unknown precision; BackendUnavailable where the package, the device or the precision is
             missing, or the picture is not eager's
    """

    name = "openvino"

    def __init__(self, model: Model, device: str, precision: str) -> None:
        answer = probe(device)
        if isinstance(answer, Unavailable):
            raise BackendUnavailable(f"backend openvino is not available: {answer.reason}; {answer.fix}")
        precision = choose_precision(precision, device)
        self._core = _core()
        lacking = _lacking(precision)
        if lacking:
            raise BackendUnavailable(f"{lacking.reason}; {lacking.fix}")
        self._settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        key = self._key(model)
        body = _kept.read(key)
        if body is None:
            entry, (trunk, *tails) = self._compiled(model)
        else:
            entry, load = _Entry.from_bytes(body), self._core.import_model
            trunk, *tails = (load(blob, "CPU", self._settings) for blob in (entry.trunk, *entry.tails.values()))
        super().__init__(
            model,
            device,
            precision,
            self._runner(trunk),
            {kind: self._runner(tail) for kind, tail in zip(entry.tails, tails, strict=True)},
            want=entry.want,
            **entry.about,
        )
        if body is None:
            _kept.write(key, entry.to_bytes())
            _kept.shrink()

    def _compiled(self, model: Model) -> tuple[_Entry, list[Any]]:
        """What is to be kept of a model, and its parts, ready to run."""
        made = parts.in_parts(model, "fp32")
        compiled = [
            self._core.compile_model(self._core.read_model(part), "CPU", self._settings)
            for part in (made.trunk, *made.tails.values())
        ]
        trunk, *tails = (each.export_model().getvalue() for each in compiled)
        about = {name: getattr(made, name) for name in ("channels", "wants_frames", "radius", "tail_radius", "live")}
        want = selfcheck.wanted(model, selfcheck.check_frames(*selfcheck.CHECK_SIZE))
        return _Entry(about, trunk, dict(zip(made.tails, tails, strict=True)), want), compiled

    def _runner(self, compiled: Any) -> Run:
        """A compiled part as a function over tensors' memory."""
        request, tensor = compiled.create_infer_request(), _library().Tensor

        def run(inputs: tuple[Tensor, ...], out: Tensor) -> None:
            for i, each in enumerate(inputs):
                request.set_input_tensor(i, tensor(each.numpy(), shared_memory=True))
            request.set_output_tensor(0, tensor(out.numpy(), shared_memory=True))
            request.infer()

        return run

    def _key(self, model: Model) -> str:
        """A digest of all that an entry depends on; of the weights themselves, which may not be those of the file."""
        sources = [Path(str(module.__file__)).read_bytes() for module in _SOURCES]
        about = {
            "weights": weights.digest(model.network.state_dict()),
            "network": [model.info.architecture, model.info.config, str(model.network)],
            "ranges": [model.info.input_range, model.info.output_range],
            "check": selfcheck.CHECK_SIZE,
            "openvino": _library().get_version(),
            "settings": self._settings,
            "cpu": [platform.machine(), self._core.get_property("CPU", "FULL_DEVICE_NAME"), _capabilities()],
            "onnx": version("onnx"),
            "sources": [hashlib.sha256(source).hexdigest() for source in sources],
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
