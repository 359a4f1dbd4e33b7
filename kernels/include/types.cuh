// What device code and the host agree on, without any header of CUDA: NVRTC compiles it where no toolkit is installed.
#pragma once

#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef signed char int8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef int int32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;
#else
#include <cstdint>
#endif

namespace srgan_fast {

// What cuTensorMapEncodeTiled fills: a tensor in global memory and the box of it that one copy moves. Newer headers of
// CUDA ask for 128 bytes of alignment, older ones for 64.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

// Element types of 16 bits; their values travel in pairs as one uint32_t, the first in the low half.
struct Half {};
struct BFloat16 {};

}  // namespace srgan_fast
