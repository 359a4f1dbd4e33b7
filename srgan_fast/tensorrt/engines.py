"""Engines kept on disk: built once for a network, a GPU and a TensorRT, and found again only where all is the same.

An entry is a sidecar and the two plans that it names by digest, for frames as uint8 and as floats. Its key is a digest
of all that the plans depend on. It is published once it was judged, under a lock, the plans first: what is found is
whole. A plan is native code, so the folder and its files have to be the user's own, and none is taken from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from srgan_fast import __version__, community, export, private, rewrite
from srgan_fast import model as network
from srgan_fast.errors import BackendUnavailable
from srgan_fast.export.graph import FRAMES
from srgan_fast.tensorrt import library
from srgan_fast.tensorrt.build import BuildOptions, Profile, Progress, most_pixels
from srgan_fast.tensorrt.build import build as build_plan
from srgan_fast.weights import Model, ModelInfo, bundled

_FORMAT = 1
_SIDECAR = re.compile(r"([0-9a-f]{32})\.json")
_PLAN = re.compile(r"[0-9a-f]{32}-(uint8|float)-[0-9a-f]{16}\.plan")
_TIMING = re.compile(r"[0-9a-f]{16}\.timing")
_DRIVER = Path("/proc/driver/nvidia/version")
# A plan without a sidecar is one that is about to have one, or was replaced while a process reads it; not after this.
_FORGOTTEN_S = 3600
# By so much two times of one engine differ.
_NOISE = 0.03
_TUNED, _LARGEST = (480, 270), (960, 540)


@dataclass(frozen=True)
class Findings:
    """What a pair of engines is worth on this GPU.

    `agreement` has one line for each size that was held against eager; `speed_ms` has, by size (such as 480x270) and
    backend, the time of a frame, all measured in turns.
    """

    agreement: tuple[str, ...]
    speed_ms: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Entry:
    """The sidecar of a pair of engines: what it was made of and where, and what it was found to be worth.

    Units:  `built` in UTC
    """

    key: str
    model: dict[str, Any]
    precision: str
    leaky_relu: bool
    recipe: str
    options: dict[str, Any]
    plans: dict[str, dict[str, Any]]
    tensorrt: str
    gpu: dict[str, Any]
    driver: str | None
    versions: dict[str, str]
    built: str
    build_seconds: float
    agreement: list[str] = field(default_factory=list)
    speed_ms: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """What its plans take on disk."""
        return sum(plan["bytes"] for plan in self.plans.values())

    @property
    def speedups(self) -> dict[str, tuple[str, float]]:
        """By size, the fastest other backend, and how many times as fast as that TensorRT was."""
        found = {}
        for size, times in self.speed_ms.items():
            others = {name: passed_ms for name, passed_ms in times.items() if name != "tensorrt"}
            if others:
                best = min(others, key=others.__getitem__)
                found[size] = best, others[best] / times["tensorrt"]
        return found

    @property
    def why_not_auto(self) -> str | None:
        """Why `auto` should take another backend, though this engine runs: it was never judged, or is not faster."""
        if not self.agreement or not self.speedups:
            return "its engine was not held against the other backends on this GPU"
        size, (best, least) = min(self.speedups.items(), key=lambda item: item[1][1])
        mean = math.fsum(math.log(ratio) for _, ratio in self.speedups.values())
        if least < 1 - _NOISE or mean <= 0:
            return f"when its engine was built, {best} was {1 / least:.2f} times as fast at {size}"
        return None

    def plan_name(self, frames: str) -> str:
        """The file of one of its plans."""
        return f"{self.key}-{frames}-{self.plans[frames]['sha256'][:16]}.plan"


@dataclass(frozen=True)
class Pair:
    """Two engines of one build: the plans for frames as uint8 and as floats, by those words."""

    entry: Entry
    plans: Mapping[str, bytes]


@dataclass(frozen=True)
class Missing:
    """No engine that fits: the reason, and what the user can do about it."""

    reason: str
    fix: str


@dataclass(frozen=True)
class Damaged:
    """An entry whose sidecar says nothing that can be relied on."""

    key: str
    reason: str


def options(
    scale: int,
    *,
    sizes: tuple[tuple[int, int], ...] = (),
    largest: tuple[int, int] | None = None,
    batch: int = 1,
    level: int = BuildOptions.level,
    workspace_bytes: int = BuildOptions.workspace_bytes,
) -> BuildOptions:
    """Options for every frame up to `largest`, or 960x540, in batches up to `batch`, and tuned for each of `sizes`.

    Units:   sizes are width x height in LR pixels
    Raises:  UsageError for more pixels at once than an engine may take, or sizes above `largest`
    """
    if largest is None:
        width, height = (max(sides) for sides in zip(_LARGEST, *sizes, strict=True))
        while not sizes and batch * width * height > most_pixels(scale) and min(width, height) > 1:
            width, height = width * 7 // 8, height * 7 // 8
    else:
        width, height = largest
    tuned = min(height, _TUNED[1]), min(width, _TUNED[0])
    first = Profile((1, 1, 1), (batch, *tuned), (batch, height, width))
    fixed = [Profile((1, h, w), (batch, h, w), (batch, h, w)) for w, h in sizes]
    return BuildOptions((first, *fixed), level=level, workspace_bytes=workspace_bytes)


def find(model: Model, precision: str, device: torch.device | str, *, where: Path | None = None) -> Pair | Missing:
    """The newest pair of engines for a model, a precision (fp16 or fp32) and a GPU, read and checked; or why none.

    Nothing is built.
    """
    try:
        place = where or private.folder("engines")
    except BackendUnavailable as error:
        reason, _, cure = str(error).partition("; ")
        return Missing(reason, cure)
    fix = f"run `{build_command(model.info, precision)}` (takes minutes)"
    mine = [each for each in entries(where=place) if isinstance(each, Entry) and each.model == _about(model.info)]
    if not mine:
        return Missing("no engine for this model and GPU", fix)
    right = sorted((each for each in mine if each.precision == precision), key=lambda each: each.built, reverse=True)
    if not right:
        return Missing(f"no engine for this model and GPU in {precision}, only in {mine[0].precision}", fix)
    reasons: list[str] = []
    for entry in right:
        found = _checked(entry, device, place)
        if isinstance(found, Pair):
            # To write the graphs takes longer than all else: only where the same weights may have become others.
            if entry.recipe == _recipe() or entry.key == _key(
                _graphs(model, precision, entry.leaky_relu), entry.options, device
            ):
                return found
            found = f"engine was built from another graph, by srgan-fast {entry.versions['srgan-fast']}"
        reasons.append(found)
    return Missing(reasons[0], f"rebuild: {fix}")


def build_command(info: ModelInfo, precision: str = "fp16") -> str:
    """What a user types to build the engines of a model."""
    named = info.name if info.name in bundled() else "--weights FILE"
    return f"srgan-fast trt build {named}" + (f" --precision {precision}" if precision != "fp16" else "")


def why_not(entry: Entry | Damaged, device: torch.device | str, *, where: Path | None = None) -> str | None:
    """Why an entry cannot be used on a device, or None; its graph is not looked at, which needs the model."""
    found = entry.reason if isinstance(entry, Damaged) else _checked(entry, device, where or private.folder("engines"))
    return found if isinstance(found, str) else None


def entries(*, where: Path | None = None) -> list[Entry | Damaged]:
    """All entries, by their keys.

    Raises:  BackendUnavailable if the folder is not the user's own
    """
    place = where or private.folder("engines")
    keys = sorted(match[1] for path in place.iterdir() if (match := _SIDECAR.fullmatch(path.name)))
    return [_entry(place, key) for key in keys]


def build(
    model: Model,
    precision: str,
    options: BuildOptions,
    device: torch.device | str,
    *,
    judge: Callable[[Pair], Findings],
    leaky_relu: bool = False,
    rebuild: bool = False,
    where: Path | None = None,
    progress: Progress | None = None,
    on_wait: Callable[[], object] = lambda: None,
) -> tuple[Pair, bool]:
    """The pair of engines for these options, and whether it was built now: then `judge` has said what it is worth.

    Where another process is building the same one, `on_wait` is called, and its result is taken. What `judge` raises
    keeps the engines from being published.

    Raises:  BackendUnavailable where TensorRT cannot, or the folder is not the user's own; OutputError where it takes
             no file; Interrupted; what `judge` raises
    """
    place = where or private.folder("engines")
    version = library.load().__version__
    graphs = _graphs(model, precision, leaky_relu)
    key = _key(graphs, asdict(options), device)
    waited = False

    def wait() -> None:
        nonlocal waited
        waited = True
        on_wait()

    with private.locked(place / f"{key}.lock", wait):
        there = _entry(place, key) if (place / f"{key}.json").exists() else None
        if isinstance(there, Entry) and (waited or not rebuild):
            kept = _checked(there, device, place)
            if isinstance(kept, Pair):
                return kept, False
        _sweep(place)
        start = time.monotonic()
        plans = _built(graphs, precision, options, device, place, progress)
        entry = Entry(
            key=key,
            model=_about(model.info),
            precision=precision,
            leaky_relu=leaky_relu,
            recipe=_recipe(),
            options=_plain(asdict(options)),
            plans={frames: {"sha256": _sha256(plan), "bytes": len(plan)} for frames, plan in plans.items()},
            tensorrt=version,
            gpu=library.gpu_identity(device),
            driver=driver(),
            versions={"srgan-fast": __version__, "torch": str(torch.__version__)},
            built=datetime.now(UTC).isoformat(timespec="seconds"),
            build_seconds=round(time.monotonic() - start, 1),
        )
        found = judge(Pair(entry, plans))
        speed_ms = {size: dict(times) for size, times in found.speed_ms.items()}
        entry = replace(entry, agreement=list(found.agreement), speed_ms=speed_ms)
        for frames, plan in plans.items():
            private.write(place / entry.plan_name(frames), plan)
        private.write(place / f"{key}.json", _sidecar(entry))
        return Pair(entry, plans), True


def clean(wanted: Callable[[Entry | Damaged], bool], *, where: Path | None = None) -> list[Entry | Damaged]:
    """Remove the entries that are wanted gone, and what belongs to none any more; files that are not ours stay.

    Returns those that were removed. What was timed goes with the last entry.
    """
    place = where or private.folder("engines")
    gone = [each for each in entries(where=place) if wanted(each)]
    for each in gone:
        # The sidecar first: what is found is whole.
        (place / f"{each.key}.json").unlink(missing_ok=True)
        for path in place.glob(f"{each.key}-*.plan"):
            path.unlink(missing_ok=True)
    _sweep(place)
    if not entries(where=place):
        for path in place.iterdir():
            if _TIMING.fullmatch(path.name):
                path.unlink(missing_ok=True)
    return gone


def _built(
    graphs: Mapping[str, bytes],
    precision: str,
    options: BuildOptions,
    device: torch.device | str,
    place: Path,
    progress: Progress | None,
) -> dict[str, bytes]:
    """The plans of both graphs; the second is quick, by what the first has timed."""
    timing = (
        place / f"{_digest({'tensorrt': library.load().__version__, 'gpu': library.gpu_identity(device)})[:16]}.timing"
    )
    plans = {}
    for frames, graph in graphs.items():
        known = private.read(timing) or b""
        made = build_plan(graph, options, device=device, precision=precision, timing=known, progress=progress)
        private.write(timing, made.timing)
        plans[frames] = made.plan
    return plans


def _graphs(model: Model, precision: str, leaky_relu: bool) -> dict[str, bytes]:
    assert precision in ("fp16", "fp32")
    return {
        frames: export.onnx_bytes(model, export.Options(precision, frames, leaky_relu))  # type: ignore[arg-type]
        for frames in FRAMES
    }


def _key(graphs: Mapping[str, bytes], options: Mapping[str, Any], device: torch.device | str) -> str:
    """Not the driver: a new one must not cost a build, and an engine that it does not load says so."""
    return _digest(
        {
            "format": _FORMAT,
            "graphs": {frames: _sha256(graph) for frames, graph in graphs.items()},
            "options": options,
            "tensorrt": library.load().__version__,
            "gpu": library.gpu_identity(device),
        }
    )[:32]


def _recipe() -> str:
    """A digest of the sources that turn weights into graphs."""
    return _digest(
        [_sha256(Path(str(module.__file__)).read_bytes()) for module in (export.graph, community, network, rewrite)]
    )


def _about(info: ModelInfo) -> dict[str, Any]:
    """What tells models apart."""
    about = {key: value for key, value in asdict(info).items() if key not in ("recipe", "source", "assumptions")}
    return _plain(about)


def _plain(about: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: what was just made equals what is read."""
    return json.loads(json.dumps(about))


def _checked(entry: Entry, device: torch.device | str, place: Path) -> Pair | str:
    """An entry with its plans, read and checked, or why it cannot be used on a device."""
    answer = library.why_not(str(device))
    if answer is not None:
        return answer[0]
    version, gpu = library.load().__version__, library.gpu_identity(device)
    if (entry.tensorrt, entry.gpu) != (version, gpu):
        was, now = f"TensorRT {entry.tensorrt} on {entry.gpu['name']}", f"{version} on {gpu['name']}"
        other = [key for key in gpu if key != "name" and gpu[key] != entry.gpu.get(key)]
        beside = f" with another {', '.join(other)}" if other and entry.gpu["name"] == gpu["name"] else ""
        return f"engine was built by {was}, this is {now}{beside}"
    plans: dict[str, bytes] = {}
    for frames in FRAMES:
        path = place / entry.plan_name(frames)
        plan = private.read(path)
        if plan is None:
            return f"its plan {path.name} is not there, or not the user's own"
        if len(plan) != entry.plans[frames]["bytes"]:
            return f"its plan {path.name} has {len(plan)} bytes of {entry.plans[frames]['bytes']}"
        if _sha256(plan) != entry.plans[frames]["sha256"]:
            return f"its plan {path.name} was altered"
        plans[frames] = plan
    return Pair(entry, plans)


def _sidecar(entry: Entry) -> bytes:
    about = {"format": _FORMAT, **asdict(entry)}
    return json.dumps({**about, "sha256": _digest(about)}, indent=1).encode() + b"\n"


def _entry(place: Path, key: str) -> Entry | Damaged:
    content = private.read(place / f"{key}.json")
    if content is None:
        return Damaged(key, "its sidecar cannot be read, or is not the user's own")
    try:
        about = json.loads(content)
        check = about.pop("sha256")
        if about["format"] != _FORMAT:
            return Damaged(key, f"it is of another version of srgan-fast ({about['versions']['srgan-fast']})")
        if check != _digest(about) or about["key"] != key:
            return Damaged(key, "its sidecar was altered")
        return Entry(**{name: value for name, value in about.items() if name != "format"})
    except (ValueError, LookupError, TypeError, AttributeError):
        return Damaged(key, "its sidecar is damaged")


def _sweep(place: Path) -> None:
    """Remove plans that no entry names, and parts of files, once no process can be writing or reading them."""
    private.sweep(place)
    named = {each.plan_name(frames) for each in entries(where=place) if isinstance(each, Entry) for frames in FRAMES}
    for path in place.iterdir():
        with suppress(OSError):  # another process removes some too
            forgotten = _PLAN.fullmatch(path.name) and path.name not in named
            if forgotten and time.time() - path.stat().st_mtime > _FORGOTTEN_S:
                path.unlink()


def driver() -> str | None:
    """The version of NVIDIA's driver, where the system says it."""
    with suppress(OSError):
        match = re.search(r"\d{3}\.\d+(\.\d+)?", _DRIVER.read_text())
        return match[0] if match else None
    return None


def _digest(about: object) -> str:
    return _sha256(json.dumps(about, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
