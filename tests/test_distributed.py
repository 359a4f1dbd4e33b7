"""Several ranks as one run: averages, agreement, gradients on their way during backward, and ranks that die."""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from typing import Any

import pytest
import torch
from ranks import environment, free_port, together
from torch import nn

from srgan_fast.errors import BackendUnavailable, DistributedError, SRGANFastError, UsageError
from srgan_fast.model import Discriminator, Generator, GeneratorConfig
from srgan_fast.train import distributed, losses
from srgan_fast.train.config import PRESETS
from srgan_fast.train.distributed import ALONE, World, join, leave, synchronised
from srgan_fast.train.step import EagerStep

pytestmark = pytest.mark.usefixtures("one_thread")


def network(seed: int = 0) -> nn.Sequential:
    """Three layers with parameters, one with running statistics, in channels_last."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6), nn.Conv2d(6, 2, 3))
    return layers.to(memory_format=torch.channels_last)


def batch(round_: int, rank: int) -> torch.Tensor:
    return torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(10 * round_ + rank))


def loss_of(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return (net(images) ** 2).mean()


# What a rank answers goes through a pipe: plain lists and numbers, no tensors that live in shared memory.
def plain(tensors: Any) -> list[Any]:
    return [tensor.detach().tolist() for tensor in tensors]


def enter(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in environment(0, 1, 0):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def talk(world: World) -> dict[str, Any]:
    single, pair = torch.tensor(float(world.rank)), torch.tensor([[1.0, 4.0 * world.rank]])
    world.mean_(single, pair)
    world.barrier()
    return {
        "main": world.main,
        "mean": [float(single), pair.tolist()],
        "share": world.share({"rank": world.rank}),
        "agree": [world.agree(False), world.agree(world.rank == 1), world.agree(True)],
    }


def test_ranks_average_share_and_agree() -> None:
    answers = together(talk)
    assert [answer.pop("main") for answer in answers] == [True, False]
    for answer in answers:
        assert answer == {"mean": [0.5, [[1.0, 2.0]]], "share": {"rank": 0}, "agree": [False, True, True]}


def die_late(world: World) -> None:
    world.barrier()
    os._exit(9)


def test_ranks_that_are_started_again_do_not_take_the_dead_for_the_living() -> None:
    store = torch.distributed.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    assert together(die_late, store=store.port) == [None, None]
    assert [answer["share"] for answer in together(talk, store=store.port, size=3)] == [{"rank": 0}] * 3
    assert [answer["share"] for answer in together(talk, store=store.port)] == [{"rank": 0}] * 2


def test_a_rank_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    enter(monkeypatch, environment(0, 3, store.port, timeout_s=0.3) | {"TORCHELASTIC_USE_AGENT_STORE": "True"})
    with pytest.raises(DistributedError, match=r"joining a world of 3: no word of rank 1, 2 in 0.3 s"):
        join("cpu")


def three_rounds(world: World, bucket_bytes: int) -> dict[str, Any]:
    net = network(seed=world.rank)
    reducer = world.reducer(net, bucket_bytes)
    start = plain(net.parameters())
    rounds = []
    for round_ in range(3):
        for parameter in net.parameters():
            parameter.grad = None
        loss_of(net, batch(round_, world.rank)).backward()
        reducer.finish()
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in net.parameters())
        rounds.append(plain(p.grad for p in net.parameters()))
        with torch.no_grad():
            for parameter in net.parameters():
                assert parameter.grad is not None
                parameter -= parameter.grad
    return {"start": start, "rounds": rounds, "statistics": plain(net.buffers())}


@pytest.mark.parametrize("bucket_bytes", [1, 700, 1 << 20])
def test_gradients_and_statistics_are_the_average_of_the_ranks(bucket_bytes: int) -> None:
    first, second = together(three_rounds, bucket_bytes)
    assert first == second, "the ranks differ"
    net = network(seed=0)
    assert first["start"] == plain(net.parameters()), "not rank 0's weights"
    for round_ in range(3):
        copies = [copy.deepcopy(net) for _ in range(2)]
        for rank, mine in enumerate(copies):
            loss_of(mine, batch(round_, rank)).backward()
        with torch.no_grad():
            for parameter, a, b in zip(net.parameters(), *(mine.parameters() for mine in copies), strict=True):
                assert a.grad is not None
                assert b.grad is not None
                # (a + b) / 2 is one addition and one exact halving: nothing is left to differ.
                parameter.grad = (a.grad + b.grad) / 2
                parameter -= parameter.grad
            for buffer, a, b in zip(net.buffers(), *(mine.buffers() for mine in copies), strict=True):
                buffer.copy_((a + b) / 2 if buffer.is_floating_point() else a)
        assert first["rounds"][round_] == plain(p.grad for p in net.parameters())
    assert first["statistics"] == plain(net.buffers())


def order_of_events(world: World) -> list[str]:
    net = network()
    reducer = world.reducer(net, bucket_bytes=128 * 4)  # all but the first layer; its bias; its weight
    events: list[str] = []
    send = distributed.distributed.all_reduce

    def noted(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        events.append(f"sent {tensor.numel()}")
        return send(tensor, *arguments, **options)

    distributed.distributed.all_reduce = noted

    def watch(_: nn.Module, __: Any, out: torch.Tensor) -> None:
        out.register_hook(lambda _: events.append("first layer's backward"))  # just before it

    net[0].register_forward_hook(watch)
    loss_of(net, batch(0, world.rank)).backward()
    events.append("backward ended")
    reducer.finish()
    return events


def test_gradients_leave_while_backward_runs() -> None:
    for events in together(order_of_events):
        statistics = "sent 12"
        first = ["sent 6", "sent 162"]
        assert events == ["sent 128", "first layer's backward", *first, "backward ended", statistics]


def in_another_order(world: World) -> list[Any]:
    branches = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
    reducer = world.reducer(branches, bucket_bytes=1)
    # Backward goes through them in the reverse of this order, so that buckets fill in another one on each rank.
    order = [0, 1, 2] if world.rank == 0 else [2, 0, 1]
    total = torch.zeros(())
    for index in order:
        total = total + (world.rank + 1) * 10**index * branches[index](torch.ones(1, 2)).sum()
    total.backward()
    reducer.finish()
    return plain(p.grad for p in branches.parameters())


def test_gradients_that_come_in_another_order_on_each_rank_are_not_mixed_up() -> None:
    for answer in together(in_another_order):
        assert answer == [[[1.5 * 10**index] * 2] * 2 for index in range(3)]


def misuse(world: World) -> tuple[list[str], list[Any]]:
    net = network()
    net[1].requires_grad_(False)
    reducer = world.reducer(net, bucket_bytes=700)
    said = []
    loss_of(net, batch(0, world.rank)).backward()
    try:
        loss_of(net, batch(0, world.rank)).backward()
    except RuntimeError as error:
        said.append(str(error))
    for parameter in net.parameters():
        parameter.grad = None  # as after a capture that failed: the round starts again
    loss_of(net, batch(0, world.rank)).backward()
    reducer.finish()
    gradients = plain(p.grad for p in net.parameters() if p.grad is not None)
    (net[0].weight.sum() + net[3](torch.zeros(1, 6, 3, 3)).sum()).backward()
    try:
        reducer.finish()
    except DistributedError as error:
        said.append(str(error))
    return said, gradients


def test_a_gradient_that_is_missing_or_comes_twice() -> None:
    first, second = together(misuse)
    assert first[1] == second[1], "a backward that was given up is in the average"
    for twice, missing in (first[0], second[0]):
        assert "call finish() first" in twice
        assert "none for 0.bias, 2.weight;" in missing


def test_alone_nothing_communicates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_reduce", "broadcast", "broadcast_object_list", "init_process_group", "destroy_process_group"):
        monkeypatch.setattr(distributed.distributed, name, None)
    enter(monkeypatch, {})
    assert join("cpu") == (ALONE, torch.device("cpu"))
    assert ALONE.main
    net = network()
    reducer = ALONE.reducer(net)
    loss_of(net, batch(0, 0)).backward()
    before = plain([*(p.grad for p in net.parameters() if p.grad is not None), *net.buffers()])
    reducer.finish()
    assert plain([*(p.grad for p in net.parameters() if p.grad is not None), *net.buffers()]) == before
    value = torch.tensor(3.0)
    ALONE.mean_(value)
    ALONE.barrier()
    assert (float(value), ALONE.share("x"), ALONE.agree(True), ALONE.agree(False)) == (3.0, "x", True, False)
    leave(ALONE)
    # torchrun with one process, too.
    enter(monkeypatch, environment(0, 1, 1))
    assert join("cpu") == (ALONE, torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({"RANK": ""}, "cpu", "got RANK="),
        ({"RANK": None}, "cpu", "WORLD_SIZE without RANK; start by torchrun or unset WORLD_SIZE"),
        ({"LOCAL_RANK": "x"}, "cpu", "got LOCAL_RANK=x"),
        ({"WORLD_SIZE": "two"}, "cpu", "got WORLD_SIZE=two"),
        ({"RANK": "2"}, "cpu", "RANK below WORLD_SIZE=2, got 2"),
        ({"WORLD_SIZE": "0"}, "cpu", "RANK below WORLD_SIZE=0"),
        ({"MASTER_ADDR": None}, "cpu", "expected MASTER_ADDR beside WORLD_SIZE=2"),
        ({"MASTER_PORT": ""}, "cpu", "expected MASTER_PORT beside WORLD_SIZE=2"),
        ({"SRGAN_FAST_TIMEOUT_S": "soon"}, "cpu", "seconds above 0, got 'soon'"),
        ({"SRGAN_FAST_TIMEOUT_S": "nan"}, "cpu", "seconds above 0, got 'nan'"),
        ({"SRGAN_FAST_TIMEOUT_S": "1e30"}, "cpu", "seconds above 0, got '1e30'"),
        ({}, "gpu", "auto, cpu, cuda"),
        ({}, "mps", "auto, cpu, cuda"),
    ],
)
def test_an_environment_that_cannot_be(
    changes: dict[str, str | None], device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = environment(1, 2, 1) | changes
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    enter(monkeypatch, {key: value for key, value in variables.items() if value is not None})
    with pytest.raises(UsageError) as caught:
        join(device)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(None, 1, 2)]))
    monkeypatch.setattr(distributed, "_own", lambda *_: None)
    monkeypatch.setattr(distributed.distributed, "init_process_group", lambda backend, **_: chosen.append(backend))
    enter(monkeypatch, environment(1, 2, 1))
    world, device = join("auto")
    assert (world, device) == (World(1, 2), torch.device("cuda", 1))
    assert chosen == [device, "cpu:gloo,cuda:nccl"]
    with pytest.raises(UsageError, match="--device cuda for several ranks"):
        join("cuda:0")
    enter(monkeypatch, environment(2, 3, 1))
    with pytest.raises(BackendUnavailable, match=r"GPU 2 for this rank on this machine, torch sees 2; lower --nproc"):
        join("auto")
    enter(monkeypatch, {})
    assert join("cuda:1") == (ALONE, torch.device("cuda", 1))
    assert join("cuda") == (ALONE, torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(BackendUnavailable, match="torch sees none"):
        join("cuda")


def test_batch_norm_across_ranks_is_refused_on_a_cpu() -> None:
    with pytest.raises(BackendUnavailable, match="leave out --sync-bn"):
        synchronised(network(), torch.device("cpu"))
    net = synchronised(network(), torch.device("cuda"))
    assert isinstance(net[1], nn.SyncBatchNorm)
    assert net.state_dict().keys() == network().state_dict().keys()


def lose(world: World, how: str) -> tuple[float, str]:
    net = network()
    reducer = world.reducer(net)
    if world.rank == 1:
        if how == "dies":
            os._exit(9)
        time.sleep(2)
    start = time.monotonic()
    loss_of(net, batch(0, world.rank)).backward()
    try:
        reducer.finish()
    except DistributedError as error:
        return time.monotonic() - start, str(error)
    return time.monotonic() - start, ""


@pytest.mark.parametrize(("how", "timeout_s"), [("dies", 60), ("is silent", 1)])
def test_a_rank_that_is_lost_is_one_line_and_no_hang(how: str, timeout_s: float) -> None:
    waited_s, said = together(lose, how, timeout_s=timeout_s)[0]
    assert "another rank is gone or silent, found when averaging gradients" in said
    assert "\n" not in said
    assert len(said) < 300
    assert waited_s < 10


def test_a_master_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, environment(1, 2, free_port(), timeout_s=1))
    with pytest.raises(DistributedError, match="joining a world of 2") as caught:
        join("cpu")
    assert isinstance(caught.value, SRGANFastError)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_a_step_with_nccl_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank that counts as two: NCCL carries every message, and each average is half of the gradient."""
    enter(monkeypatch, environment(0, 2, free_port()))
    device = torch.device("cuda", torch.cuda.current_device())
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1)
    try:
        world = World(0, 2)
        net = network().to(device)
        reducer = world.reducer(net, bucket_bytes=700)
        images = torch.zeros(2, 3, 7, 8, device=device)

        def work() -> None:
            for parameter in net.parameters():
                parameter.grad = None
            loss_of(net, images).backward()
            reducer.finish()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        images.copy_(batch(0, 0))
        graph.replay()
        alone = network().to(device)
        loss_of(alone, images).backward()
        for mine, want in zip(net.parameters(), alone.parameters(), strict=True):
            assert mine.grad is not None
            assert want.grad is not None
            torch.testing.assert_close(mine.grad, want.grad / 2)
    finally:
        torch.distributed.destroy_process_group()


def without_norm(net: nn.Module) -> nn.Module:
    """Batch normalisation replaced by nothing: a rank's own statistics are not those of the whole batch."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return net


GLOBAL_BATCH = 4


def trained(world: World, stage: str, normalised: bool, resume: bool = False) -> dict[str, Any]:
    """Losses of five steps, and in the end weights, running statistics, average and optimisers; in float64.

    With `resume` all ranks go on after the third step as they do from a checkpoint: from what rank 0 knew.
    """
    shape = GeneratorConfig(blocks=1, width=6, norm="batch" if normalised else "none")
    config = dataclasses.replace(
        PRESETS[f"paper-{stage}-mse"], generator=shape, crop=32, batch=GLOBAL_BATCH, precision="fp32", clip=0.05
    )

    def fresh(seed: int) -> EagerStep:
        torch.manual_seed(seed)
        judge = Discriminator(width=4).double() if stage == "srgan" else None
        if judge is not None and not normalised:
            without_norm(judge)
        return EagerStep(Generator(shape).double(), losses.mse, config, judge, world=world)

    step = fresh(seed=0)
    rows = slice(world.rank * GLOBAL_BATCH // world.size, (world.rank + 1) * GLOBAL_BATCH // world.size)
    terms = []
    for index in range(5):
        if resume and index == 3:
            state = world.share(copy.deepcopy(step.state()))
            step = fresh(seed=1)
            step.restore(state)
        drawn = torch.Generator().manual_seed(index)
        lr = torch.rand(GLOBAL_BATCH, 3, 8, 8, dtype=torch.float64, generator=drawn)
        hr = torch.rand(GLOBAL_BATCH, 3, 32, 32, dtype=torch.float64, generator=drawn) * 2 - 1
        terms.append({name: float(value) for name, value in step(lr[rows], hr[rows], index).items()})
    networks = {"generator": step.generator, "average": step.average, "discriminator": step.discriminator}
    state = {
        f"{name}.{key}": value.tolist()
        for name, net in networks.items()
        if net is not None
        for key, value in net.state_dict().items()
    }
    moments = {
        f"{name}.{index}.{key}": value.tolist()
        for name, optimiser in step.optimisers.items()
        for index, held in optimiser.state_dict()["state"].items()
        for key, value in held.items()
    }
    return {"terms": terms, "state": state, "moments": moments}


# Stage, with batch normalisation, resumed.
RUNS = [("srresnet", False, False), ("srgan", False, False), ("srgan", True, False), ("srgan", True, True)]


def train_all(world: World) -> dict[Any, dict[str, Any]]:
    return {run: trained(world, *run) for run in RUNS}


@pytest.fixture(scope="module")
def by_two() -> list[dict[Any, dict[str, Any]]]:
    """What each of two ranks came to, all runs in one pair of processes."""
    return together(train_all)


@pytest.mark.parametrize("stage", ["srresnet", "srgan"])
def test_two_ranks_are_one_rank_at_twice_the_batch(stage: str, by_two: list[Any]) -> None:
    """The same sums in another order: gradients in float64 differ by 1e-15 of themselves, those of the adversarial
    losses, which are computed in float32, by 6e-8. Adam moves a weight by 1e-4 a step at most, so five steps leave far
    less than 1e-9 between weights. Terms are told in float32, the mean of two rounded halves."""
    first, second = (rank[stage, False, False] for rank in by_two)
    assert first == second
    alone = trained(ALONE, stage, False)
    for mine, want in zip(first["terms"], alone["terms"], strict=True):
        assert mine == pytest.approx(want, rel=1e-6)
    assert first["state"].keys() == alone["state"].keys()
    for key, value in alone["state"].items():
        torch.testing.assert_close(torch.tensor(first["state"][key]), torch.tensor(value), rtol=0, atol=1e-9)
    assert alone["terms"][-1]["content"] < alone["terms"][0]["content"]


def test_with_batch_norm_all_ranks_hold_one_state(by_two: list[Any]) -> None:
    first, second = (rank["srgan", True, False] for rank in by_two)
    assert first == second
    # Each rank normalises by its own half of the batch: another run than one rank's, by design.
    assert first["state"] != trained(ALONE, "srgan", True)["state"]


def test_what_rank_0_knows_is_enough_to_go_on(by_two: list[Any]) -> None:
    """To the bit, with batch normalisation: nothing that a rank has for itself matters to the next step."""
    for rank in by_two:
        assert rank["srgan", True, True] == rank["srgan", True, False]
