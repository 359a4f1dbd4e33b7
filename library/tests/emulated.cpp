// The library on a CPU: a device that runs the kernels' own sources in the emulator of tests/emulator, and tables with
// few heights of tiles, as the emulator takes its time. The rest is the library as it ships.
#include <cstdlib>
#include <cstring>
#include <string>

#include "conv3x3/probe.cu"
#include "conv3x3/sm90.cu"
#include "device.hpp"
#include "failure.hpp"
#include "head/sm90.cu"
#include "machine.hpp"
#include "network.hpp"
#include "sm90.hpp"
#include "tail/sm90.cu"

namespace srgan_fast::host {
namespace {

constexpr int kProcessors = 3;
unsigned model = machine::kAddress;
uint64_t seed = 0;

template <class Parameters>
void call(void (*kernel)(Parameters), const void* parameters) {
  kernel(*static_cast<const Parameters*>(parameters));
}

template <auto KERNEL>
Kernel kernel_of(int rows, int shared_bytes) {
  const machine::Entry entry = [](const void* parameters) { call(KERNEL, parameters); };
  return {reinterpret_cast<const void*>(entry), rows, shared_bytes};
}

template <Layout LAYOUT, int ROWS, bool RESIDUAL>
Kernel conv_kernel() {
  return kernel_of<conv3x3<Half, LAYOUT, ROWS, !RESIDUAL, RESIDUAL>>(ROWS,
                                                                     Conv3x3Tile<LAYOUT, ROWS, 128, 128>::kSharedBytes);
}

// As tests/emulated.py packs a tensor map for the emulator.
struct EmulatedMap {
  uint64_t address, strides[4];
  uint32_t sizes[5];
  uint16_t box[5];
  uint8_t rank, element_bytes, swizzle, mark;
} __attribute__((packed));

class Emulated : public Device {
 public:
  int processors() const override { return kProcessors; }
  void* allocate(size_t bytes) override { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
  void release(void* memory) override { std::free(memory); }
  void upload(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void prepare(const Kernel&) override {}

  TensorMap map(const Tiled& tiled) const override {
    EmulatedMap map{};
    map.address = reinterpret_cast<uint64_t>(tiled.address);
    map.rank = static_cast<uint8_t>(tiled.sizes.size());
    map.element_bytes = 2;
    map.swizzle = static_cast<uint8_t>(tiled.swizzle);
    map.mark = 0xA5;
    uint64_t stride = 2;
    for (size_t i = 0; i < tiled.sizes.size(); ++i) {
      map.sizes[i] = static_cast<uint32_t>(tiled.sizes[i]);
      map.box[i] = static_cast<uint16_t>(tiled.box[i]);
      if (i + 1 < tiled.sizes.size()) map.strides[i] = stride *= tiled.sizes[i];
    }
    if (map.address % 16 != 0 || tiled.box.size() != tiled.sizes.size())
      fail(SRGAN_FAST_LAUNCH_FAILED, "a tensor map that the driver would refuse");
    TensorMap result{};
    std::memcpy(&result, &map, sizeof map);
    return result;
  }

  void launch(const Kernel& kernel, unsigned across, unsigned down, unsigned threads, const void* parameters, void*,
              const char* what) const override {
    const char* said = machine::run({reinterpret_cast<machine::Entry>(const_cast<void*>(kernel.function)),
                                     parameters,
                                     {across, down, 1},
                                     threads,
                                     static_cast<uint32_t>(kernel.shared_bytes),
                                     model,
                                     ++seed,
                                     nullptr,
                                     0});
    if (said != nullptr) fail(SRGAN_FAST_LAUNCH_FAILED, std::string(what) + ": " + said);
  }
};

}  // namespace

std::unique_ptr<Device> open_device(int number) {
  if (number != 0) fail(SRGAN_FAST_NO_DEVICE, "the emulator is GPU 0");
  return std::make_unique<Emulated>();
}

const std::vector<Kernel>& head_kernels() {
  static const std::vector<Kernel> kernels = {
      kernel_of<srgan_fast::head<Half, uint8_t, kHeadSize, 8>>(8, HeadTile<kHeadSize, 8>::kSharedBytes)};
  return kernels;
}

const std::vector<Kernel>& conv_kernels(int layout, bool residual) {
  static const std::vector<Kernel> kernels[kLayouts][2] = {
      {{conv_kernel<kShifted, 12, false>()}, {conv_kernel<kShifted, 12, true>()}},
      {{conv_kernel<kFlat, 4, false>()}, {conv_kernel<kFlat, 4, true>()}},
      {{conv_kernel<kBoxes, 12, false>()}, {conv_kernel<kBoxes, 12, true>()}}};
  return kernels[layout][residual];
}

const std::vector<Kernel>& tail_kernels() {
  static const std::vector<Kernel> kernels = {
      kernel_of<tail_columns<Half, 4, kTailSize, 8>>(8, TailTile<4, kTailSize, 8>::kSharedBytes)};
  return kernels;
}

Kernel tail_sum_kernel(bool tanh) {
  constexpr int kBytes = TailSpan<kTailSize>::kSharedBytes;
  return tanh ? kernel_of<tail_sum<uint8_t, kTailSize, 2, true>>(0, kBytes)
              : kernel_of<tail_sum<uint8_t, kTailSize, 2, false>>(0, kBytes);
}

Kernel probe_kernel() {
  return kernel_of<probe>(0, kSwizzleAlignment + 64 * 128 + Conv3x3Tile<kBoxes, 8, 128, 128>::kHaloBytes);
}

}  // namespace srgan_fast::host

// How the hardware reads swizzled operands, and the seed of the times at which things happen.
extern "C" __attribute__((visibility("default"))) void emulate(unsigned model, uint64_t seed) {
  srgan_fast::host::model = model;
  srgan_fast::host::seed = seed;
}
