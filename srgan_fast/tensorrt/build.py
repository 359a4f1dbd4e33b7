"""From an ONNX graph to a plan: the bytes of an engine for this GPU and this TensorRT.

The graph says in which precision each operation runs, and TensorRT keeps to it (a strongly typed network), which is
what makes one way of building serve from 10.12 to 11. Minutes of GPU: whoever calls this was asked to.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch

from srgan_fast.errors import BackendUnavailable, Interrupted, UsageError
from srgan_fast.tensorrt.library import checked, load, logger, mark, on, said, tensor_shape

if TYPE_CHECKING:
    import tensorrt as trt

Frames: TypeAlias = tuple[int, int, int]  # n, h, w of LR frames

# The largest map of a x4 network of 64 channels has 1024 values a LR pixel, and TensorRT counts in 31 bits.
MOST_PIXELS = 2_000_000
_WAKE_S = 0.1


def most_pixels(scale: int) -> int:
    """The most LR pixels that an engine of this scale should take at once: its maps grow with the square."""
    return min(MOST_PIXELS, MOST_PIXELS * 16 // scale**2)


@dataclass(frozen=True)
class Profile:
    """Which frames an engine takes, and for which it is tuned.

    Units:   n, h, w of LR frames
    Raises:  UsageError unless 1 <= min <= opt <= max each way, and max within MOST_PIXELS
    """

    min: Frames
    opt: Frames
    max: Frames

    def __post_init__(self) -> None:
        if not all(1 <= low <= tuned <= high for low, tuned, high in zip(self.min, self.opt, self.max, strict=True)):
            raise UsageError(
                f"expected a profile whose frames, rows and columns rise from 1 on, got {self}; put them in order"
            )
        n, h, w = self.max
        if n * h * w > MOST_PIXELS:
            raise UsageError(
                f"expected at most {MOST_PIXELS:,} LR pixels at once, got {n} frames of {w}x{h}; larger frames are cut"
                " into tiles, so take a smaller largest size"
            )

    def takes(self, frames: Frames) -> bool:
        """Whether frames of this size are within the profile."""
        return all(low <= size <= high for low, size, high in zip(self.min, frames, self.max, strict=True))

    def __str__(self) -> str:
        return " .. ".join(f"{n}x{h}x{w}" for n, h, w in (self.min, self.opt, self.max))


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    The first profile is the one that serves whatever comes, from one pixel to its largest; those after it, within it,
    are for sizes that shall be faster, such as that of a video. A frame smaller than a smallest size could not be
    served at all: the network pads with zeros where the frame ends, so a padded frame has another picture at its edges.

    Units:   `level` 0 to 5, how long it searches; `workspace_bytes` what a layer may use beside its maps
    Raises:  UsageError for profiles or a level outside of this
    """

    profiles: tuple[Profile, ...]
    level: int = 3
    workspace_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        if not self.profiles or self.profiles[0].min != (1, 1, 1):
            raise UsageError("expected a first profile that begins with 1 frame of 1x1; put it before any other")
        first = self.profiles[0]
        for other in self.profiles[1:]:
            if not first.takes(other.max):
                raise UsageError(f"expected profiles within the first one, {first}, got {other}; make the first larger")
        if not 0 <= self.level <= 5:
            raise UsageError(f"expected a level from 0 to 5, got {self.level}")
        if self.workspace_bytes < 1:
            raise UsageError(f"expected a workspace of at least 1 byte, got {self.workspace_bytes}")


@dataclass(frozen=True)
class Built:
    """A plan, and what was timed on the way to it, which makes the next build a quick one."""

    plan: bytes
    timing: bytes


class Progress(Protocol):
    """Told how far a build is, by one thread at a time, but by any thread."""

    def phase(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, inside of another one or by itself."""

    def step(self, name: str, i: int) -> bool:
        """Step i of a phase is done; False ends the build."""

    def done(self, name: str) -> None:
        """A phase is over, with all of its steps or without."""


def build(
    onnx: bytes,
    options: BuildOptions,
    *,
    device: torch.device | str,
    precision: str,
    timing: bytes = b"",
    progress: Progress | None = None,
) -> Built:
    """Build an engine of a graph as `export` writes it, for the GPU `device` and the options.

    `precision` is the one of the graph, fp16 or fp32; a graph that TensorRT has read otherwise is refused. `timing` is
    what an earlier build has timed; from another GPU or version it is worth nothing, and harmless. Ctrl-C ends the
    build, between two of its steps, and nothing is left of it.

    Raises:  BackendUnavailable where TensorRT cannot; Interrupted where the user or `progress` ends it
    """
    load()
    device = torch.device(device)
    watch = _Watch(progress)
    built: list[Built | BaseException] = []
    over = threading.Event()

    def work() -> None:
        try:
            with on(device):
                built.append(_build(onnx, options, precision, timing, watch))
        except BaseException as error:
            built.append(error)
        finally:
            over.set()

    # In a thread of its own, so that Ctrl-C reaches this one at once and not a callback of TensorRT, which would
    # swallow it. A second Ctrl-C stops waiting; the thread is a daemon, and does not keep the process.
    threading.Thread(target=work, name="tensorrt-build", daemon=True).start()
    try:
        _wait_for(over)
    except KeyboardInterrupt:
        watch.cancelled = True
        _wait_for(over)
    if watch.failure is not None:
        raise watch.failure
    if watch.cancelled:
        raise Interrupted("stopped; no engine was built, and none is kept")
    (result,) = built
    if isinstance(result, BaseException):
        raise result
    return result


def _wait_for(event: threading.Event) -> None:
    # A signal that the system hands to another thread is seen only when this one wakes up.
    while not event.wait(_WAKE_S):
        pass


def _build(onnx: bytes, options: BuildOptions, precision: str, timing: bytes, watch: _Watch) -> Built:
    import tensorrt as trt

    since = mark()
    builder = trt.Builder(logger())
    # On 11 every network is of this kind, and the flag has another number: never a literal.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger())
    if not parser.parse(onnx):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise BackendUnavailable(f"TensorRT cannot read the network: {'; '.join(reasons) or said(since)}")
    _expect_precision(network, precision)
    config = builder.create_builder_config()
    _configure(config, options)
    config.progress_monitor = _make_monitor(watch)
    for profile in options.profiles:
        _add_profile(builder, config, network.get_input(0), profile, since)
    _use_timing(config, timing)
    plan = checked(builder.build_serialized_network(network, config), "TensorRT cannot build the engine", since)
    return Built(bytes(plan), bytes(config.get_timing_cache().serialize()))


def _expect_precision(network: trt.INetworkDefinition, precision: str) -> None:
    """Refuse a network that has become another one on the way: a flag that is not known must not cost the precision."""
    import tensorrt as trt

    outputs = [network.get_layer(i).get_output(0) for i in range(network.num_layers)]
    got = "fp16" if any(output.dtype == trt.DataType.HALF for output in outputs) else "fp32"
    if got != precision:
        raise BackendUnavailable(
            f"expected a network in {precision}, and TensorRT {trt.__version__} has read one in {got}; report it"
        )


def _configure(config: trt.IBuilderConfig, options: BuildOptions) -> None:
    import tensorrt as trt

    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.builder_optimization_level = options.level
    config.max_aux_streams = 0  # the network is a chain, and one stream is what a CUDA graph wants
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and fp32 would not be fp32
    # So that a small frame takes the memory of a small frame, and not of the largest that the engine was built for.
    config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)


def _add_profile(
    builder: trt.Builder, config: trt.IBuilderConfig, frames: trt.ITensor, profile: Profile, since: int
) -> None:
    import tensorrt as trt

    shapes = [tensor_shape(size, 3, frames.dtype) for size in (profile.min, profile.opt, profile.max)]
    wanted = builder.create_optimization_profile()
    wanted.set_shape(frames.name, *(trt.Dims(shape) for shape in shapes))
    if config.add_optimization_profile(wanted) < 0:
        raise BackendUnavailable(f"TensorRT refuses the profile {profile}: {said(since)}")


def _use_timing(config: trt.IBuilderConfig, timing: bytes) -> None:
    """Take up what was timed before; begin anew where that was on another GPU, or by another version."""
    for blob in (timing, b""):
        cache = config.create_timing_cache(blob)
        if cache is not None and config.set_timing_cache(cache, False):
            return
    raise BackendUnavailable("TensorRT takes no timing cache, not even an empty one; report it")


class _Watch:
    """What a build is asked and told while it runs, on whatever thread of TensorRT's."""

    def __init__(self, progress: Progress | None) -> None:
        self.cancelled = False
        self.failure: Exception | None = None
        self._progress, self._lock = progress, threading.Lock()

    def tell(self, event: str, *about: object) -> bool:
        """Hand an event of the build on; False if the build shall end."""
        # What is raised inside of a callback is lost in C++: it is kept, and ends the build.
        with self._lock:
            if self._progress is not None and self.failure is None:
                try:
                    if getattr(self._progress, event)(*about) is False:
                        self.cancelled = True
                except Exception as error:
                    self.failure, self.cancelled = error, True
            return not self.cancelled


def _make_monitor(watch: _Watch) -> trt.IProgressMonitor:
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # not super(): the part in C++ has to be made by name

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.tell("phase", phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.tell("step", phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            watch.tell("done", phase_name)

    return Monitor()
