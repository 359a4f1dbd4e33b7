"""Several processes as one training run: who is who, what they average, and what they agree on.

There is no wrapper around the networks, as DistributedDataParallel would be: a step has two networks that share one
forward, and it is captured as a whole. Each rank takes its rows of the one batch, and the gradients are averaged while
the backward still runs.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import PrefixStore, ReduceOp, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from srgan_fast.errors import BackendUnavailable, DistributedError, UsageError

T = TypeVar("T")
# Bytes of gradients that travel together: large enough for the rate of the link, small enough to start early.
_BUCKET_BYTES = 4 * 2**20
_LOOK_S = 0.02
_TIMEOUT = "SRGAN_FAST_TIMEOUT_S"


@dataclass(frozen=True)
class World:
    """The ranks of one run; `World()` is a single process, and none of its methods communicates.

    All ranks have to call the same methods in the same order.

    Raises:  DistributedError from every method when another rank is gone or keeps silent for too long
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is rank 0, the only one that writes files and prints."""
        return self.rank == 0

    @torch.no_grad()
    def mean_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its average over all ranks; one message for all, and no wait for a GPU."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _talking("averaging"):
            distributed.all_reduce(flat)
        # gloo has no average, and one way for all backends is one rounding for all.
        flat.div_(self.size)
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def share(self, value: T) -> T:
        """Rank 0's value, whatever the others gave."""
        if self.size == 1:
            return value
        box = [value]
        with _talking("sharing what rank 0 knows"):
            distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so; waits for all of them."""
        if self.size == 1:
            return flag
        # On the CPU, whose messages need no GPU and so wait for none.
        said = torch.tensor(int(flag))
        with _talking("agreeing"):
            distributed.all_reduce(said, ReduceOp.MAX)
        return bool(said)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.agree(False)

    def reducer(self, network: nn.Module, bucket_bytes: int = _BUCKET_BYTES) -> Reducer:
        """Make all ranks start from rank 0's weights, and average the gradients of `network` from now on."""
        return Reducer(network, self, bucket_bytes)


ALONE = World()


class _Bucket:
    """Gradients that travel together, in one buffer that stays where it is: a captured step knows its address."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        first = parameters[0]
        self.flat = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
        self.views: dict[nn.Parameter, Tensor] = {}
        start = 0
        for parameter in parameters:
            # The strides of the parameter, channels_last too: the optimiser then walks both alike.
            view = self.flat.as_strided(parameter.shape, _dense(parameter), start)
            self.views[parameter] = view
            start += parameter.numel()
        self.missing = set(parameters)
        self.work: distributed.Work | None = None


class Reducer:
    """Averages the gradients of one network over the ranks while backward runs.

    A hook moves each finished gradient into a bucket, last layers first; a full bucket leaves at once, in the same
    order on all ranks. From then on `.grad` is a view into the bucket. Nothing here waits for a GPU, and the buckets
    stay where they are, so that a step with NCCL can be captured.

    Raises:  DistributedError when another rank is gone; RuntimeError for a second backward before `finish`
    """

    def __init__(self, network: nn.Module, world: World, bucket_bytes: int = _BUCKET_BYTES) -> None:
        self._network, self._world = network, world
        self._buckets: list[_Bucket] = []
        self._of: dict[nn.Parameter, _Bucket] = {}
        self._sent = 0
        if world.size == 1:
            return
        with torch.no_grad(), _talking("sharing the weights of rank 0"):
            for tensor in (*network.parameters(), *network.buffers()):
                dense = tensor.detach().contiguous()
                distributed.broadcast(dense, src=0)
                tensor.copy_(dense)
        for parameters in _grouped([p for p in network.parameters() if p.requires_grad][::-1], bucket_bytes):
            bucket = _Bucket(parameters)
            self._buckets.append(bucket)
            for parameter in parameters:
                self._of[parameter] = bucket
                parameter.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        """Wait for the messages; then every `.grad` and every running statistic is the average over the ranks.

        Raises:  DistributedError where a parameter has had no gradient: the others wait for it in vain
        """
        if self._world.size == 1:
            return
        if self._sent < len(self._buckets):
            names = {parameter: name for name, parameter in self._network.named_parameters()}
            lost = [names[parameter] for bucket in self._buckets for parameter in bucket.missing]
            raise DistributedError(
                f"expected a gradient for every parameter on every rank, got none for {', '.join(sorted(lost))};"
                " freeze with requires_grad_(False) what is not trained"
            )
        for bucket in self._buckets:
            assert bucket.work is not None
            with _talking("averaging gradients"):
                bucket.work.wait()
            bucket.flat.div_(self._world.size)
        self._start_over()
        self.average_statistics()

    def average_statistics(self) -> None:
        """Make the running statistics those of all ranks; once more after a forward that follows `finish`."""
        self._world.mean_(*(buffer for buffer in self._network.buffers() if buffer.is_floating_point()))

    @torch.no_grad()
    def _arrived(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        bucket = self._of[parameter]
        view = bucket.views[parameter]
        if parameter not in bucket.missing:
            if parameter.grad is view:  # its sum may be on the way already
                raise RuntimeError("expected finish() after each backward, got a second backward; call finish() first")
            self._start_over()  # the backward before was given up half-way, as by a capture that failed
        if parameter.grad is not view:
            assert parameter.grad is not None
            view.copy_(parameter.grad)
            parameter.grad = view
        bucket.missing.remove(parameter)
        # In order, though a later one may be full first: messages are matched by their order.
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            ready = self._buckets[self._sent]
            with _talking("averaging gradients"):
                ready.work = distributed.all_reduce(ready.flat, async_op=True)
            self._sent += 1

    def _start_over(self) -> None:
        self._sent = 0
        for bucket in self._buckets:
            bucket.missing, bucket.work = set(bucket.views), None


def _grouped(parameters: list[nn.Parameter], bucket_bytes: int) -> Iterator[list[nn.Parameter]]:
    group: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if group and (size + parameter.nbytes > bucket_bytes or parameter.dtype != group[0].dtype):
            yield group
            group, size = [], 0
        group.append(parameter)
        size += parameter.nbytes
    if group:
        yield group


def _dense(tensor: Tensor) -> tuple[int, ...]:
    """The strides of a copy that keeps the order of the dimensions in memory."""
    return torch.empty_like(tensor, device="meta").stride()


def join(device: str = "auto") -> tuple[World, torch.device]:
    """The world that torchrun's environment describes, and the device of this rank: its own GPU, or the CPU.

    Without that environment, or in a world of one, this is `ALONE`. NCCL carries what is on GPUs, gloo what is on the
    CPU. A silent rank is given up after `SRGAN_FAST_TIMEOUT_S` seconds, 600 if not given.

    Raises:  UsageError for an environment or a device that cannot be; BackendUnavailable without a GPU for this rank;
             DistributedError if the others cannot be reached
    """
    world, local = _described(os.environ)
    chosen = _device(device, local if world.size > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world.size == 1:
        return ALONE, chosen
    timeout = _timeout(os.environ.get(_TIMEOUT, "600"))
    # Functions there keep the group that there is when they are imported, as the optimiser does later, beyond `leave`:
    # a thread of gloo that lives on and lets go of a tensor while the interpreter ends takes the process with it.
    import_module("torch.distributed.nn.functional")
    with _talking(f"joining a world of {world.size}"):
        store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=timeout))
        distributed.init_process_group(
            "gloo" if chosen.type == "cpu" else "cpu:gloo,cuda:nccl",
            store=_own(store, world, timeout),
            timeout=timeout,
            rank=world.rank,
            world_size=world.size,
        )
    return world, chosen


def _own(store: Store, world: World, timeout: timedelta) -> Store:
    """A part of the store that no rank before these has written to.

    torchrun keeps one store through all restarts: the address that a dead rank left there would be taken for that of
    its successor. Rank 0 makes up a name and tells it to whoever is here now, until all have heard it.
    """
    me = os.urandom(8).hex()
    if not world.main:
        store.set(f"here/{world.rank}", me)
        store.wait([f"told/{me}"], timeout)
        name = store.get(f"told/{me}").decode()
        store.set(f"{name}/{world.rank}", "heard")
        return PrefixStore(name, store)
    waiting, end = set(range(1, world.size)), time.monotonic() + timeout.total_seconds()
    while waiting:
        for rank in list(waiting):
            if store.check([f"{me}/{rank}"]):
                waiting.remove(rank)
            elif store.check([f"here/{rank}"]):  # perhaps by one that is dead: asked again until one answers
                store.set(f"told/{store.get(f'here/{rank}').decode()}", me)
        if waiting and time.monotonic() > end:
            raise RuntimeError(
                f"no word of rank {', '.join(map(str, sorted(waiting)))} in {timeout.total_seconds():g} s"
            )
        time.sleep(_LOOK_S)
    return PrefixStore(me, store)


def leave(world: World) -> None:
    """End what `join` began; nothing for `ALONE`."""
    if world.size > 1 and distributed.is_initialized():
        distributed.destroy_process_group()


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch normalisation over the batch of all ranks instead of each rank's own.

    Raises:  BackendUnavailable on a CPU, for which torch has none
    """
    if device.type != "cuda":
        raise BackendUnavailable(
            f"synchronised batch normalisation needs CUDA, and this rank runs on {device.type};"
            " leave out --sync-bn, or train on GPUs"
        )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted


def _described(environment: Mapping[str, str]) -> tuple[World, int]:
    if "WORLD_SIZE" not in environment:
        return ALONE, 0
    numbers = {}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        text = environment.get(name, "")
        if not text.isdecimal():
            got = f"{name}={text}" if name in environment else f"WORLD_SIZE without {name}"
            raise UsageError(f"expected the environment of torchrun, got {got}; start by torchrun or unset WORLD_SIZE")
        numbers[name] = int(text)
    size, rank = numbers["WORLD_SIZE"], numbers["RANK"]
    if not rank < size:
        raise UsageError(f"expected a RANK below WORLD_SIZE={size}, got {rank}; start by torchrun or unset WORLD_SIZE")
    for name in ("MASTER_ADDR", "MASTER_PORT") if size > 1 else ():
        if not environment.get(name):
            raise UsageError(f"expected {name} beside WORLD_SIZE={size}, got none; start by torchrun")
    return World(rank, size), numbers["LOCAL_RANK"]


def _timeout(text: str) -> timedelta:
    with suppress(ValueError, OverflowError):
        seconds = timedelta(seconds=float(text))
        if seconds > timedelta():
            return seconds
    raise UsageError(f"expected {_TIMEOUT} to be a number of seconds above 0, got {text!r}")


def _device(name: str, local: int | None) -> torch.device:
    """The device of this rank; `local` is its number on this machine, or None for a process alone."""
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    try:
        asked = torch.device(name)
    except RuntimeError:
        asked = None
    if asked is None or asked.type != "cuda":
        raise UsageError(f"expected a device out of auto, cpu, cuda, cuda:0 and so on, got {name!r}")
    if not count:
        raise BackendUnavailable("expected a CUDA GPU, torch sees none; give --device cpu, or a CUDA build of torch")
    if local is not None and asked.index is not None:
        raise UsageError(f"expected --device cuda for several ranks, each on its own GPU, got {name}")
    index = asked.index if asked.index is not None else (local or 0)
    if index >= count:
        what = "rank on this machine" if local is not None else "run"
        cure = "lower --nproc-per-node" if local is not None else "give --device cuda"
        raise BackendUnavailable(f"expected a GPU {index} for this {what}, torch sees {count}; {cure}")
    return torch.device("cuda", index)


@contextmanager
def _talking(what: str) -> Iterator[None]:
    """One line for all that can befall a message; a closed connection and a timeout are RuntimeErrors of torch."""
    try:
        yield
    except RuntimeError as error:
        # Without the place in gloo's sources, and without its advice.
        cause = re.sub(r"\[\S+:\d+\] ", "", str(error).strip()).partition("\n")[0].partition(". ")[0]
        raise DistributedError(
            f"another rank is gone or silent, found when {what}: {cause}; look at what ended first, and go on"
            " from the last checkpoint (torchrun --max-restarts does)"
        ) from error
