"""Ranks for tests: a function in several processes of one world, gloo and one thread each."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Forked from a server that has loaded all and computed nothing: a rank starts in milliseconds. Optimisers load _dynamo.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["torch._dynamo", "srgan_fast.train.step", "pytest"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, size: int, port: int, timeout_s: float = 60) -> dict[str, str]:
    """What torchrun sets for a rank of one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "SRGAN_FAST_TIMEOUT_S": str(timeout_s),
    }


def _rank(function: Callable[..., Any], arguments: tuple[Any, ...], variables: dict[str, str], end: Connection) -> None:
    import torch

    from srgan_fast.train.distributed import join, leave

    torch.set_num_threads(1)
    os.environ.update(variables)
    try:
        world, _ = join("cpu")
        end.send((True, function(world, *arguments)))
        leave(world)
    except Exception as error:
        end.send((False, error))


def together(
    function: Callable[..., Any], *arguments: Any, size: int = 2, timeout_s: float = 60, store: int | None = None
) -> list[Any]:
    """What `function(world, *arguments)` returns or raises in each rank; None for one that has died.

    `store` is the port of a store that is there already, as torchrun has one; otherwise rank 0 makes one.
    """
    port = store or free_port()
    ends, processes = [], []
    for rank in range(size):
        mine, theirs = _FORKS.Pipe(duplex=False)
        variables = environment(rank, size, port, timeout_s) | {"TORCHELASTIC_USE_AGENT_STORE": str(bool(store))}
        process = _FORKS.Process(target=_rank, args=(function, arguments, variables, theirs), daemon=True)
        process.start()
        theirs.close()
        ends.append(mine)
        processes.append(process)
    answers = []
    for end, process in zip(ends, processes, strict=True):
        try:
            assert end.poll(120), "a rank hangs"
            answers.append(end.recv())
        except EOFError:
            answers.append((True, None))
        end.close()
        process.join(120)
        assert process.exitcode is not None, "a rank does not end"
    return [answer for _, answer in answers]
