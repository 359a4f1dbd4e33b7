"""The emulator of sm_90a itself: products of every operand, matrices between lanes, rules of maps and launches."""

from __future__ import annotations

import ctypes
from pathlib import Path

import emulated
import pytest
import torch
from emulated import Emulated, Fault

from srgan_fast.kernels import hopper
from srgan_fast.kernels.nvrtc import Specialisation

pytestmark = pytest.mark.skipif(emulated.COMPILER is None, reason=emulated.NO_COMPILER)

# Operands are copied by TMA, which swizzles; without a swizzle, 16 bytes of every row at a time.
PRODUCT = """\
#include "matrix.cuh"
#include "ptx.cuh"
#include "wgmma.cuh"
namespace srgan_fast {
struct Parameters { TensorMap a, b; void* to; };
template <class T, int N, int SPAN>
__global__ void product(const __grid_constant__ Parameters p) {
  constexpr Swizzle kSwizzle =
      SPAN == 128 ? Swizzle::k128 : SPAN == 64 ? Swizzle::k64 : SPAN == 32 ? Swizzle::k32 : Swizzle::kNone;
  constexpr int kRow = SPAN ? SPAN : 16, kElements = kRow / (32 / Accumulator<T>::kDepth);
  const uint32_t a = (dynamic_shared() + 1023) / 1024 * 1024, b = a + 128 * 128, barrier = b + 256 * 128;
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_done();
    wait_for_previous_kernel();
    barrier_arrive_expect(barrier, (64 + N) * 128);
    for (int part = 0; part < 128 / kRow; ++part) {
      tma_load(a + part * 64 * kRow, &p.a, barrier, part * kElements, 0);
      tma_load(b + part * N * kRow, &p.b, barrier, part * kElements, 0);
    }
  }
  __syncthreads();
  barrier_wait(barrier, 0);
  const uint64_t da = operand(a, kSwizzle, 8 * kRow, 64 * 16), db = operand(b, kSwizzle, 8 * kRow, N * 16);
  typename Accumulator<T>::type d[N / 2];
  wgmma_fence();
  for (int k = 0; k < 128; k += 32)
    Wgmma<T, N>::add(d, advanced(da, k / kRow * 64 * kRow + (SPAN ? k % kRow : 0)),
                     advanced(db, k / kRow * N * kRow + (SPAN ? k % kRow : 0)), k != 0);
  wgmma_commit();
  wgmma_wait();
  for (int i = 0; i < N / 2; ++i) {
    const int lane = threadIdx.x % 32, m = threadIdx.x / 32 * 16 + lane / 4 + (i / 2 % 2) * 8;
    static_cast<typename Accumulator<T>::type*>(p.to)[m * N + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
  }
}
__global__ void transposed(const __grid_constant__ Parameters p) {
  const uint32_t memory = dynamic_shared(), lane = threadIdx.x;
  for (uint32_t i = lane; i < 128; i += 32)
    store_shared(memory + 4 * i, static_cast<const uint32_t*>(static_cast<const void*>(p.to))[i]);
  __syncthreads();
  uint32_t v[4];
  load_matrices(memory + 16 * lane, v);
  __syncthreads();
  // As they are held, each lane has two values of a column: written one after another, that is the transpose.
  for (int m = 0; m < 4; ++m) store_shared(memory + 128 * m + 4 * lane, v[m]);
  __syncthreads();
  for (uint32_t i = lane; i < 128; i += 32) static_cast<uint32_t*>(p.to)[i] = load_shared(memory + 4 * i);
}
template <class T>
__global__ void packed(const __grid_constant__ Parameters p) {
  float* pair = static_cast<float*>(p.to) + 2 * threadIdx.x;
  const uint32_t bits = pack<T>(pair[0], pair[1]);
  unpack<T>(bits, pair[0], pair[1]);
}
__global__ void exchanged(const __grid_constant__ Parameters p) {
  static_cast<uint32_t*>(p.to)[threadIdx.x] = exchange(threadIdx.x, 5);
}
}  // namespace srgan_fast
"""


class Parameters(ctypes.Structure):
    """Those of the kernels above."""

    _fields_ = hopper.padded(("a", hopper.Map), ("b", hopper.Map), ("to", ctypes.c_void_p))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file with the kernels above."""
    path: Path = tmp_path_factory.mktemp("kernels") / "product.cu"
    path.write_text(PRODUCT)
    return str(path)


@pytest.mark.parametrize("span", [0, 32, 64, 128])
@pytest.mark.parametrize(
    ("dtype", "element"),
    [(torch.float16, "srgan_fast::Half"), (torch.bfloat16, "srgan_fast::BFloat16"), (torch.int8, "int8_t")],
    ids=str,
)
def test_a_product_is_that_of_the_matrices_that_were_copied(
    source: str, span: int, dtype: torch.dtype, element: str
) -> None:
    runtime, n, depth = Emulated(seed=span), 48, 128 // dtype.itemsize
    generator = torch.Generator().manual_seed(span)
    a, b = (torch.randint(-8, 9, (rows, depth), generator=generator).to(dtype) for rows in (64, n))
    to = torch.zeros(64, n, dtype=torch.int32 if dtype == torch.int8 else torch.float32)
    row = (span or 16) // dtype.itemsize
    maps = [
        (ctypes.c_uint8 * 128)(*runtime.tensor_map(x.data_ptr(), dtype, (depth, len(x)), (128,), (row, len(x)), span))
        for x in (a, b)
    ]
    kernel = runtime.kernel(Specialisation(source, f"srgan_fast::product<{element}, {n}, {span}>"), 60000)
    runtime.launch(kernel, (1, 1, 1), 128, Parameters(*maps, to.data_ptr()))
    assert torch.equal(to.long(), a.long() @ b.long().T)


def test_matrices_are_loaded_transposed(source: str) -> None:
    runtime, values = Emulated(), torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    wanted = values.transpose(1, 2).contiguous()
    kernel = runtime.kernel(Specialisation(source, "srgan_fast::transposed"), 512)
    runtime.launch(kernel, (1, 1, 1), 32, Parameters(to=values.data_ptr()))
    assert torch.equal(values, wanted)


@pytest.mark.parametrize(
    ("dtype", "element"), [(torch.float16, "srgan_fast::Half"), (torch.bfloat16, "srgan_fast::BFloat16")], ids=str
)
def test_values_are_rounded_as_torch_rounds_them(source: str, dtype: torch.dtype, element: str) -> None:
    runtime = Emulated()
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1600, generator=generator) * 2.0 ** torch.randint(-30, 18, (1600,), generator=generator)
    # Ties, the ends of the ranges, and what is no number.
    ends = [0.0, -0.0, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 65504, 65519, 65520, 6e-8, 2**-25, 3e38]
    values = torch.cat(
        [values, torch.tensor([*ends, 1.5 * 2**-24, 2.5 * 2**-24, torch.inf, -torch.inf, torch.nan, 1.0])]
    )
    wanted = values.to(dtype).float()
    for some, right in zip(values.split(64), wanted.split(64), strict=True):
        kernel = runtime.kernel(Specialisation(source, f"srgan_fast::packed<{element}>"), 0)
        runtime.launch(kernel, (1, 1, 1), len(some) // 2, Parameters(to=some.data_ptr()))
        assert torch.equal(some.nan_to_num(nan=12345.0), right.nan_to_num(nan=12345.0))
        assert torch.equal(some.signbit(), right.signbit()) or bool(right.isnan().any())


def test_lanes_exchange_by_the_bits_of_a_mask(source: str) -> None:
    runtime, values = Emulated(), torch.zeros(64, dtype=torch.int32)
    runtime.launch(
        runtime.kernel(Specialisation(source, "srgan_fast::exchanged"), 0),
        (1, 1, 1),
        64,
        Parameters(to=values.data_ptr()),
    )
    assert values.tolist() == [thread ^ 5 for thread in range(64)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"address": 1 << 20 | 8}, "multiple of 16"),
        ({"strides": (24,)}, "multiples of 16"),
        ({"box": (64, 257)}, "1 to 256"),
        ({"box": (4, 8)}, "multiples of 16"),
        ({"box": (128, 8)}, "no more than the swizzle"),
        ({"swizzle": 16}, "0, 32, 64, 128"),
        ({"sizes": (64, 0)}, "1 to 2"),
        ({"strides": ()}, "dimensions"),
    ],
)
def test_a_tensor_map_that_the_driver_would_refuse_is_refused(change: dict[str, object], said: str) -> None:
    right: dict[str, object] = {"address": 1 << 20, "dtype": torch.float16, "sizes": (64, 8), "strides": (128,)}
    right |= {"box": (64, 8), "swizzle": 128}
    Emulated().tensor_map(**right)  # type: ignore[arg-type]
    with pytest.raises(Fault, match=said):
        Emulated().tensor_map(**right | change)  # type: ignore[arg-type]


def test_launches_that_cannot_be_are_refused(source: str) -> None:
    runtime, kernel = Emulated(), Specialisation(source, "srgan_fast::exchanged")
    with pytest.raises(Fault, match="232449 bytes of shared memory"):
        runtime.kernel(kernel, 232449)
    with pytest.raises(Fault, match="takes 384 bytes of parameters, not 128"):
        runtime.launch(runtime.kernel(kernel, 0), (1, 1, 1), 32, (ctypes.c_uint8 * 128)())  # type: ignore[arg-type]
    with pytest.raises(Fault, match="no_such_name"):
        runtime.kernel(Specialisation(source, "srgan_fast::no_such_name"), 0)


def test_a_planted_fault_that_is_nowhere_in_the_source_is_an_error() -> None:
    runtime = Emulated(mutations={"conv3x3/probe.cu": ("no such text", "")})
    with pytest.raises(Fault, match="occurs 0 times"):
        runtime.kernel(Specialisation("conv3x3/probe.cu", "srgan_fast::probe"), 1024)
