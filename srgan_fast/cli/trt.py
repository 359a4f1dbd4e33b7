"""srgan-fast trt: TensorRT's engines: build them, list them, remove them, and prove on a machine that they work."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srgan_fast import __version__
from srgan_fast.cli.check import version_of
from srgan_fast.cli.options import BUNDLED, WEIGHTS, EnginePrecision, LeakyRelu, ModelArgument
from srgan_fast.cli.sizes import parse_size
from srgan_fast.errors import BackendUnavailable, Interrupted, UsageError

if TYPE_CHECKING:
    from srgan_fast.tensorrt.engines import Damaged, Entry

app = typer.Typer(help="Build, list, check and remove engines of NVIDIA's TensorRT.", no_args_is_help=True)

_Device = Annotated[str, typer.Option(metavar="NAME", help="GPU that the engines are for: cuda, cuda:1, ...")]
_CHECKED = 64  # pixels a side: an engine for so small a frame is built in the least time


@app.command()
def build(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help=f"{BUNDLED}.", show_default="srresnet_x4")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"{WEIGHTS}, instead of MODEL.", readable=False)
    ] = None,
    precision: EnginePrecision = "fp16",
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WxH", help="LR size in pixels to tune for, as of a video; may be repeated.", show_default="none"
        ),
    ] = None,
    largest: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Largest LR size in pixels; larger frames are tiled.", show_default="960x540"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Most frames at once.")] = 1,
    level: Annotated[int, typer.Option(help="How long TensorRT searches, 0 to 5; take less where a build fails.")] = 3,
    workspace: Annotated[
        str, typer.Option(metavar="SIZE", help="Most GPU memory that a layer may work in, such as 2G or 512M.")
    ] = "2G",
    leaky_relu: LeakyRelu = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again what is there already.")] = False,
    device: _Device = "cuda",
) -> None:
    """Build the engines of a model for this GPU, compare them with eager PyTorch, time and keep them; takes minutes."""
    if model is not None and weights is not None:
        raise UsageError(f"expected MODEL or --weights, got both ({model}, {weights}); leave one out")
    if precision not in ("fp16", "fp32"):
        raise UsageError(f"expected --precision fp16 or fp32, got {precision!r}; TensorRT has no other here")
    if batch < 1:
        raise UsageError(f"expected --batch of at least 1, got {batch}")
    sizes = tuple(parse_size("--size", each) for each in size or ())
    most = None if largest is None else parse_size("--largest", largest)

    from srgan_fast.bench.engine import judge
    from srgan_fast.cli.progress import Phases
    from srgan_fast.memory import parse_memory
    from srgan_fast.tensorrt import engines
    from srgan_fast.weights import load

    _need_tensorrt(device)
    loaded = load(weights or model or "srresnet_x4")
    workspace_bytes = parse_memory(workspace) or 0
    options = engines.options(
        loaded.info.scale, sizes=sizes, largest=most, batch=batch, level=level, workspace_bytes=workspace_bytes
    )
    waited = []
    try:
        with Phases() as phases:

            def wait() -> None:
                waited.append(True)
                phases.say("another process builds the same engines: waiting for it")

            pair, new = engines.build(
                loaded,
                precision,
                options,
                device,
                judge=judge(loaded, precision, device, phases.say),
                leaky_relu=leaky_relu,
                rebuild=rebuild,
                progress=phases,
                on_wait=wait,
            )
    except KeyboardInterrupt:
        raise Interrupted("stopped; no engine was built, and none is kept") from None
    if not new:
        print("built by another process just now" if waited else "there already; --rebuild builds it again")
    _show(pair.entry, pair.entry.why_not_auto)


@app.command("list")
def list_(device: _Device = "cuda") -> None:
    """List the engines that are kept: of what, for what, how exact and how fast, and whether they can be used here."""
    from srgan_fast import private
    from srgan_fast.tensorrt import engines

    kept = engines.entries()
    for each in kept:
        reason = engines.why_not(each, device)
        if isinstance(each, engines.Entry):
            _show(each, each.why_not_auto, reason)
        else:
            print(f"{each.key}\n  here     not usable: {reason}")
    total = sum(each.size_bytes for each in kept if isinstance(each, engines.Entry))
    print(f"{_counted(kept)}, {total / 2**20:.1f} MiB in {private.folder('engines')}")


@app.command()
def clean(
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY", help="Keys of engines as `srgan-fast trt list` has them, or their beginnings."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Remove every engine.")] = False,
    unusable: Annotated[
        bool,
        typer.Option(
            "--unusable", help="Remove those that cannot be used here: of another GPU or TensorRT, or damaged."
        ),
    ] = False,
    device: _Device = "cuda",
) -> None:
    """Remove engines; other files in their folder stay."""
    if sum((bool(keys), all_, unusable)) != 1:
        raise UsageError("expected one of KEY, --all and --unusable; see srgan-fast trt list")

    from srgan_fast import private
    from srgan_fast.tensorrt import engines

    if unusable:
        # Where nothing can be used, for want of a GPU, nothing is known of what could.
        _need_tensorrt(device)
    kept = engines.entries()
    for key in keys or ():
        if sum(each.key.startswith(key) for each in kept) != 1:
            raise UsageError(f"expected a key of an engine, or the first characters of just one, got {key!r}")

    def wanted(each: Entry | Damaged) -> bool:
        if unusable:
            return engines.why_not(each, device) is not None
        return all_ or any(each.key.startswith(key) for key in keys or ())

    gone = engines.clean(wanted)
    for each in gone:
        what = f" {each.model['name']} {each.precision}" if isinstance(each, engines.Entry) else ""
        print(f"removed {each.key}{what}")
    freed = sum(each.size_bytes for each in gone if isinstance(each, engines.Entry))
    print(f"{_counted(gone)} removed, {freed / 2**20:.1f} MiB, from {private.folder('engines')}")


@app.command()
def check(
    model: ModelArgument = "srresnet_x4",
    device: _Device = "cuda",
) -> None:
    """Build small engines, compare them with eager PyTorch, time them, and keep none: a report to paste in an issue."""
    import torch

    from srgan_fast.bench.engine import judge
    from srgan_fast.tensorrt import engines, library
    from srgan_fast.weights import load

    print(f"srgan-fast {__version__} trt check, Python {platform.python_version()}, {platform.platform()}")
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, onnx {version_of('onnx')}")
    with _step("TensorRT"):
        _need_tensorrt(device)
        print(f"TensorRT {library.load().__version__}, driver {engines.driver()}")
        print("GPU: " + ", ".join(f"{key} {value}" for key, value in library.gpu_identity(device).items()))
    loaded = load(model)
    options = engines.options(loaded.info.scale, largest=(_CHECKED, _CHECKED))
    for precision in ("fp16", "fp32"):
        with _step(f"{model} {precision}"), tempfile.TemporaryDirectory() as folder:
            judged = judge(loaded, precision, device, print)
            pair, _ = engines.build(loaded, precision, options, device, judge=judged, where=Path(folder))
            _show(pair.entry, pair.entry.why_not_auto)
    print("all passed; in a bug report, paste everything above")


@contextmanager
def _step(name: str) -> Iterator[None]:
    """Print how a step of the check ends."""
    start = time.monotonic()
    try:
        yield
    except BaseException as error:
        print(f"{name}: FAIL after {time.monotonic() - start:.1f} s: {type(error).__name__}: {error}")
        raise
    print(f"{name}: ok, {time.monotonic() - start:.1f} s")


def _need_tensorrt(device: str) -> None:
    from srgan_fast.tensorrt import library

    answer = library.why_not(device)
    if answer is not None:
        raise BackendUnavailable(f"backend tensorrt is not available: {answer[0]}; {answer[1]}")


def _show(entry: Entry, not_by_auto: str | None, reason: str | None = None) -> None:
    """Print an entry; `reason` is why it cannot be used here, `not_by_auto` why only where it is asked for."""
    built = f"built {entry.built[:16].replace('T', ' ')} UTC in {entry.build_seconds:.1f} s"
    print(f"{entry.key}  {entry.model['name']} {entry.precision}, {entry.size_bytes / 2**20:.1f} MiB, {built}")
    print(f"  for      {entry.gpu['name']} (sm {entry.gpu['sm']}), TensorRT {entry.tensorrt}, driver {entry.driver}")
    for profile in entry.options["profiles"]:
        smallest, tuned, largest = (f"{n} of {w}x{h}" for n, h, w in (profile[end] for end in ("min", "opt", "max")))
        print(f"  frames   {smallest} to {largest}, tuned for {tuned}")
    for line in entry.agreement:
        print(f"  agrees   {line}")
    for size, times in entry.speed_ms.items():
        best, ratio = entry.speedups.get(size, ("", 0.0))
        beside = f", {ratio:.2f} times as fast as {best}" if best else ""
        print(f"  speed    {size}: {times['tensorrt']:.3f} ms{beside}")
    usable = "usable, and taken by auto" if not_by_auto is None else f"usable, but not taken by auto: {not_by_auto}"
    print(f"  here     {usable if reason is None else f'not usable: {reason}'}")


def _counted(entries: list[Entry | Damaged]) -> str:
    return f"{len(entries)} pair{'s' * (len(entries) != 1)} of engines"
