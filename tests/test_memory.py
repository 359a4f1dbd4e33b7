"""Memory: what is counted is what tensors take, and a budget is read and kept."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from srgan_fast.errors import UsageError
from srgan_fast.memory import LiveBytes, parse_memory, peak_resident_bytes, resident_bytes


@pytest.mark.parametrize(("text", "size"), [("2G", 2 << 30), ("512m", 512 << 20), ("1.5GiB", 3 << 29), ("7", 7)])
def test_memory_is_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


def test_memory_that_is_none() -> None:
    for memory in ("lots", 2.5):
        with pytest.raises(UsageError, match="2G"):
            parse_memory(memory)  # type: ignore[arg-type]


def test_live_bytes_follow_tensors() -> None:
    x = torch.zeros(1000)
    with LiveBytes() as live:
        a = x + 1
        b = a.view(10, 100).t()  # a view takes nothing
        a.add_(1)  # nor does what is done in place
        assert live.now == 4000
        c = b.to(torch.float64).contiguous()
        assert live.peak >= 12000
        del c
        assert live.now == 4000
        live.reset()
        assert live.peak == 4000
        (a + a).sum()
        assert live.peak == 8004
        del a
        assert live.now == 4000  # b still holds it
        del b
        assert live.now == 0


def test_a_sum_of_two_dtypes_takes_a_copy_more() -> None:
    x, y = torch.zeros(1000), torch.zeros(1000, dtype=torch.bfloat16)
    with LiveBytes() as live:
        total = x + y
        assert live.now == 4000
        assert live.peak == 8000
        del total


def test_the_process_says_what_it_holds() -> None:
    assert 0 < resident_bytes() <= peak_resident_bytes()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone holds freed memory back so")
def test_freed_memory_goes_back_to_the_system() -> None:
    """In a process of its own, since it is for good: a freed 24 MiB block that glibc would keep."""
    code = (
        "import torch\n"
        "from srgan_fast.memory import give_back_freed, resident_bytes\n"
        "give_back_freed()\n"
        "torch.ones(12 << 20)\n"  # freeing a larger one raises what glibc keeps, were it not fixed
        "before = resident_bytes()\n"
        "x, y = torch.ones(6 << 20), torch.ones(1 << 18)\n"
        "del x\n"
        "print(resident_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 << 20


def test_counting_loads_no_compiler() -> None:
    """torch._dynamo takes a second and 70 MB, which every start would pay."""
    code = (
        "import sys, torch\n"
        "from srgan_fast import Upscaler\n"
        "Upscaler(device='cpu')\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
