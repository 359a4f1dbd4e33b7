// The operations by the kernels for sm_90a.
#pragma once

#include <vector>

#include "device.hpp"
#include "ops.hpp"

namespace srgan_fast::host {

constexpr int kLayouts = 3;  // of tiles, in the order of Layout in kernels/include/conv3x3.cuh
constexpr const char* kLayoutNames[kLayouts] = {"shifted", "flat", "boxes"};

// The kernels that there are, by height.
const std::vector<Kernel>& head_kernels();
const std::vector<Kernel>& conv_kernels(int layout, bool residual);  // with a residual, or with PReLU
const std::vector<Kernel>& tail_kernels();
Kernel tail_sum_kernel(bool tanh);
Kernel probe_kernel();  // takes one pointer, and writes an int there for each layout

// Values that wgmma reads from the wrong place, by layout: 0 is right.
std::vector<int> probed(Device& device);

class Sm90 : public Ops {
 public:
  // With `rows`, all tiles have that height, of which there must be kernels; 0 takes the best for each size.
  Sm90(const Device& device, void* stream, int layout, int processors, int rows = 0)
      : device_(device), stream_(stream), layout_(layout), processors_(processors), rows_(rows) {}
  void head(const HeadCall& call) override;
  void conv(const ConvCall& call) override;
  void tail(const TailCall& call) override;

 private:
  const Kernel& best(const std::vector<Kernel>& kernels, Size size, int columns, int computed, int blocks,
                     int steps) const;

  const Device& device_;
  void* stream_;
  int layout_, processors_, rows_;
};

}  // namespace srgan_fast::host
