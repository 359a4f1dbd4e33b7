// A GPU for kernels of sm_90a, as far as the library needs one; the tests put an emulator in its place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "types.cuh"

namespace srgan_fast::host {

// A kernel of some height of tiles (0 where it has none), and the dynamic shared memory of its blocks.
struct Kernel {
  const void* function;
  int rows, shared_bytes;
};

// float16 values in global memory, dimensions without gaps from the innermost out, and the box that one copy moves.
struct Tiled {
  const void* address;
  std::vector<uint64_t> sizes;
  std::vector<uint32_t> box;
  int swizzle;  // bytes: 0 or 128
};

class Device {
 public:
  virtual ~Device() = default;
  virtual int processors() const = 0;

  // These wait, and throw Failure: OUT_OF_MEMORY, LAUNCH_FAILED; release never throws.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory) = 0;
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  virtual void download(void* to, const void* from, size_t bytes) = 0;

  // Once for each kernel, before its first launch: makes ready what a launch must not wait for.
  virtual void prepare(const Kernel& kernel) = 0;
  virtual TensorMap map(const Tiled& tiled) const = 0;
  // Puts a kernel into a stream; it may start as the kernel before it ends. `what` is for messages.
  virtual void launch(const Kernel& kernel, unsigned across, unsigned down, unsigned threads, const void* parameters,
                      void* stream, const char* what) const = 0;
};

// Memory of a device for as long as it is in scope.
class Memory {
 public:
  Memory(Device& device, size_t bytes) : device_(device), memory_(device.allocate(bytes)) {}
  ~Memory() { device_.release(memory_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* get() const { return memory_; }

 private:
  Device& device_;
  void* memory_;
};

// A GPU by number. Throws Failure: NO_DRIVER, NO_DEVICE, UNSUPPORTED_DEVICE.
std::unique_ptr<Device> open_device(int number);

}  // namespace srgan_fast::host
