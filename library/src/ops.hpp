// The operations that a network is made of, on memory of the device that does them. Maps are float16 [n, h, w, 64 * k].
#pragma once

#include <cstdint>

namespace srgan_fast::host {

struct Size {
  int n, h, w;
};

// 9x9 from the bytes of frames, bias, PReLU. x = byte * gain + offset inside a frame, zero outside.
struct HeadCall {
  const uint8_t* frames;  // [n, h, w, 3]
  uint16_t* y;            // [n, h, w, 64]
  Size size;
  const uint16_t* weight;
  const float *bias, *slopes, *gain, *offset;
  bool backwards;  // the last tile first
};

// 3x3 from 64 channels, bias, PReLU unless slopes is null, then the residual unless that is null; y may be the
// residual. With r = 2, slices of outputs are sub-pixels, which share slopes, and y is [n, 2h, 2w, 64].
struct ConvCall {
  const uint16_t* x;
  uint16_t* y;
  const uint16_t* residual;
  Size size;
  int slices, r;
  const uint16_t* weight;
  const float *bias, *slopes;
  bool backwards;
};

// 5x5 from 256 channels to three colours of 2x2 sub-pixels, and the bytes of a picture.
struct TailCall {
  const uint16_t* x;
  uint16_t* sums;  // [n, h, w, 64], scratch
  uint8_t* y;      // [n, 2h, 2w, 3]
  Size size;
  bool tanh;
  const uint16_t* weight;
  const float *bias, *gain, *offset;
  bool backwards;
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual void head(const HeadCall& call) = 0;
  virtual void conv(const ConvCall& call) = 0;
  virtual void tail(const TailCall& call) = 0;
};

}  // namespace srgan_fast::host
