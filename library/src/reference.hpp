// The operations in plain C++ on the host, in float32 on the same float16 values and packed weights: what the kernels
// are held against, on a GPU before a network is used there.
#pragma once

#include "ops.hpp"

namespace srgan_fast::host {

class Reference : public Ops {
 public:
  void head(const HeadCall& call) override;
  void conv(const ConvCall& call) override;
  void tail(const TailCall& call) override;
};

}  // namespace srgan_fast::host
