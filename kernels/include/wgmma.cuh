// wgmma: D[64 x N] (+)= A[64 x K] * B[K x N] by the 128 threads of a warpgroup, both operands in shared memory, K-major.
//
// D is float32 for 16-bit operands (K = 16) and int32 for int8 (K = 32). N is a multiple of 16; a thread holds N / 2
// values: of the rows 16 * warp + lane / 4 and that + 8, columns 8 * j + 2 * (lane % 4) and the next, as
// d[4 * j + 0, 1] and d[4 * j + 2, 3].
#pragma once

#include "types.cuh"

namespace srgan_fast {

template <class T>
struct Accumulator {
  using type = float;
  static constexpr int kDepth = 16;
};

template <>
struct Accumulator<int8_t> {
  using type = int;
  static constexpr int kDepth = 32;
};

// `accumulate` of 0 starts a new sum.
template <class T, int N>
struct Wgmma;

// An instruction names every register of D: their numbers and their C++ expressions, eight at a time.
#define SRGAN_FAST_NUMBERS_1 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SRGAN_FAST_NUMBERS_2 SRGAN_FAST_NUMBERS_1 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SRGAN_FAST_NUMBERS_3 SRGAN_FAST_NUMBERS_2 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define SRGAN_FAST_NUMBERS_4 SRGAN_FAST_NUMBERS_3 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SRGAN_FAST_NUMBERS_5 SRGAN_FAST_NUMBERS_4 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SRGAN_FAST_NUMBERS_6 SRGAN_FAST_NUMBERS_5 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define SRGAN_FAST_NUMBERS_7 SRGAN_FAST_NUMBERS_6 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define SRGAN_FAST_NUMBERS_8 SRGAN_FAST_NUMBERS_7 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define SRGAN_FAST_NUMBERS_9 SRGAN_FAST_NUMBERS_8 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define SRGAN_FAST_NUMBERS_10 SRGAN_FAST_NUMBERS_9 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define SRGAN_FAST_NUMBERS_11 SRGAN_FAST_NUMBERS_10 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define SRGAN_FAST_NUMBERS_12 SRGAN_FAST_NUMBERS_11 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define SRGAN_FAST_NUMBERS_13 SRGAN_FAST_NUMBERS_12 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define SRGAN_FAST_NUMBERS_14 SRGAN_FAST_NUMBERS_13 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define SRGAN_FAST_NUMBERS_15 SRGAN_FAST_NUMBERS_14 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define SRGAN_FAST_NUMBERS_16 SRGAN_FAST_NUMBERS_15 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define SRGAN_FAST_EIGHT(kind, i) \
  kind(d[i]), kind(d[i + 1]), kind(d[i + 2]), kind(d[i + 3]), kind(d[i + 4]), kind(d[i + 5]), kind(d[i + 6]), kind(d[i + 7])
#define SRGAN_FAST_VALUES_1(kind) SRGAN_FAST_EIGHT(kind, 0)
#define SRGAN_FAST_VALUES_2(kind) SRGAN_FAST_VALUES_1(kind), SRGAN_FAST_EIGHT(kind, 8)
#define SRGAN_FAST_VALUES_3(kind) SRGAN_FAST_VALUES_2(kind), SRGAN_FAST_EIGHT(kind, 16)
#define SRGAN_FAST_VALUES_4(kind) SRGAN_FAST_VALUES_3(kind), SRGAN_FAST_EIGHT(kind, 24)
#define SRGAN_FAST_VALUES_5(kind) SRGAN_FAST_VALUES_4(kind), SRGAN_FAST_EIGHT(kind, 32)
#define SRGAN_FAST_VALUES_6(kind) SRGAN_FAST_VALUES_5(kind), SRGAN_FAST_EIGHT(kind, 40)
#define SRGAN_FAST_VALUES_7(kind) SRGAN_FAST_VALUES_6(kind), SRGAN_FAST_EIGHT(kind, 48)
#define SRGAN_FAST_VALUES_8(kind) SRGAN_FAST_VALUES_7(kind), SRGAN_FAST_EIGHT(kind, 56)
#define SRGAN_FAST_VALUES_9(kind) SRGAN_FAST_VALUES_8(kind), SRGAN_FAST_EIGHT(kind, 64)
#define SRGAN_FAST_VALUES_10(kind) SRGAN_FAST_VALUES_9(kind), SRGAN_FAST_EIGHT(kind, 72)
#define SRGAN_FAST_VALUES_11(kind) SRGAN_FAST_VALUES_10(kind), SRGAN_FAST_EIGHT(kind, 80)
#define SRGAN_FAST_VALUES_12(kind) SRGAN_FAST_VALUES_11(kind), SRGAN_FAST_EIGHT(kind, 88)
#define SRGAN_FAST_VALUES_13(kind) SRGAN_FAST_VALUES_12(kind), SRGAN_FAST_EIGHT(kind, 96)
#define SRGAN_FAST_VALUES_14(kind) SRGAN_FAST_VALUES_13(kind), SRGAN_FAST_EIGHT(kind, 104)
#define SRGAN_FAST_VALUES_15(kind) SRGAN_FAST_VALUES_14(kind), SRGAN_FAST_EIGHT(kind, 112)
#define SRGAN_FAST_VALUES_16(kind) SRGAN_FAST_VALUES_15(kind), SRGAN_FAST_EIGHT(kind, 120)

// `eights` is N / 16, and a, b, p are the numbers of the operands after D.
#define SRGAN_FAST_WGMMA(T, n, eights, a, b, p, types, tail, kind)                                                   \
  template <>                                                                                                        \
  struct Wgmma<T, n> {                                                                                               \
    using Value = typename Accumulator<T>::type;                                                                     \
    static __device__ __forceinline__ void add(Value (&d)[n / 2], uint64_t da, uint64_t db, int accumulate) {        \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\n"                                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #n types " {" SRGAN_FAST_NUMBERS_##eights "}, %" #a ", %" #b    \
                   ", p" tail ";\n}\n"                                                                               \
                   : SRGAN_FAST_VALUES_##eights(kind)                                                                \
                   : "l"(da), "l"(db), "r"(accumulate));                                                             \
    }                                                                                                                \
  };

#define SRGAN_FAST_WGMMA_OF(n, eights, a, b, p)                                             \
  SRGAN_FAST_WGMMA(Half, n, eights, a, b, p, "k16.f32.f16.f16", ", 1, 1, 0, 0", "+f")       \
  SRGAN_FAST_WGMMA(BFloat16, n, eights, a, b, p, "k16.f32.bf16.bf16", ", 1, 1, 0, 0", "+f") \
  SRGAN_FAST_WGMMA(int8_t, n, eights, a, b, p, "k32.s32.s8.s8", "", "+r")

SRGAN_FAST_WGMMA_OF(16, 1, 8, 9, 10)
SRGAN_FAST_WGMMA_OF(32, 2, 16, 17, 18)
SRGAN_FAST_WGMMA_OF(48, 3, 24, 25, 26)
SRGAN_FAST_WGMMA_OF(64, 4, 32, 33, 34)
SRGAN_FAST_WGMMA_OF(80, 5, 40, 41, 42)
SRGAN_FAST_WGMMA_OF(96, 6, 48, 49, 50)
SRGAN_FAST_WGMMA_OF(112, 7, 56, 57, 58)
SRGAN_FAST_WGMMA_OF(128, 8, 64, 65, 66)
SRGAN_FAST_WGMMA_OF(144, 9, 72, 73, 74)
SRGAN_FAST_WGMMA_OF(160, 10, 80, 81, 82)
SRGAN_FAST_WGMMA_OF(176, 11, 88, 89, 90)
SRGAN_FAST_WGMMA_OF(192, 12, 96, 97, 98)
SRGAN_FAST_WGMMA_OF(208, 13, 104, 105, 106)
SRGAN_FAST_WGMMA_OF(224, 14, 112, 113, 114)
SRGAN_FAST_WGMMA_OF(240, 15, 120, 121, 122)
SRGAN_FAST_WGMMA_OF(256, 16, 128, 129, 130)

}  // namespace srgan_fast
