// The C interface: arguments judged, exceptions turned into a status.
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "check.hpp"
#include "device.hpp"
#include "failure.hpp"
#include "network.hpp"
#include "plan.hpp"
#include "sm90.hpp"
#include "srgan_fast.h"

using namespace srgan_fast::host;

struct srgan_fast_network {
  explicit srgan_fast_network(int number) : device(open_device(number)) {}
  ~srgan_fast_network() {
    if (weights != nullptr) device->release(weights);
  }

  std::unique_ptr<Device> device;
  Plan plan;
  void* weights = nullptr;
  int layout = 0;
};

namespace {

thread_local std::string last_error;

void require(bool kept, const char* rule) {
  if (!kept) fail(SRGAN_FAST_BAD_ARGUMENT, std::string("expected ") + rule);
}

template <class Work>
srgan_fast_status guarded(const Work& work) noexcept {
  try {
    try {
      work();
      return SRGAN_FAST_OK;
    } catch (Failure& failure) {
      last_error = std::move(failure.text);
      return failure.status;
    } catch (const std::bad_alloc&) {
      last_error = "the host has no memory left";
      return SRGAN_FAST_OUT_OF_MEMORY;
    } catch (const std::length_error&) {
      last_error = "the host has no memory left";
      return SRGAN_FAST_OUT_OF_MEMORY;
    }
  } catch (...) {
    // What is said of a failure may itself have no memory.
    return SRGAN_FAST_OUT_OF_MEMORY;
  }
}

bool overlap(const void* a, size_t a_bytes, const void* b, size_t b_bytes) {
  const auto first = reinterpret_cast<uintptr_t>(a), second = reinterpret_cast<uintptr_t>(b);
  return first < second + b_bytes && second < first + a_bytes;
}

}  // namespace

extern "C" {

const char* srgan_fast_last_error(void) { return last_error.c_str(); }

srgan_fast_status srgan_fast_create(const char* path, int device, srgan_fast_network** out) {
  if (out != nullptr) *out = nullptr;
  return guarded([&] {
    require(path != nullptr, "a path, got null");
    require(device >= 0, "the number of a GPU from 0 on");
    require(out != nullptr, "a place for the network, got null");
    // The file first: what is wrong with it shows on a machine without a GPU too.
    Plan plan = plan_of(path, network_of(path, read_weights(path)));
    auto network = std::make_unique<srgan_fast_network>(device);
    network->plan = std::move(plan);
    const auto& packed = network->plan.weights;
    network->weights = network->device->allocate(packed.size());
    network->device->upload(network->weights, packed.data(), packed.size());
    network->layout = checked_layout(*network->device, network->plan, static_cast<const uint8_t*>(network->weights));
    *out = network.release();
  });
}

srgan_fast_status srgan_fast_scale(const srgan_fast_network* network, int* out) {
  return guarded([&] {
    require(network != nullptr, "a network, got null");
    require(out != nullptr, "a place for the scale, got null");
    *out = network->plan.scale;
  });
}

srgan_fast_status srgan_fast_network_bytes(const srgan_fast_network* network, size_t* out) {
  return guarded([&] {
    require(network != nullptr, "a network, got null");
    require(out != nullptr, "a place for the bytes, got null");
    *out = network->plan.weights.size();
  });
}

srgan_fast_status srgan_fast_workspace_bytes(const srgan_fast_network* network, int n, int h, int w, size_t* out) {
  return guarded([&] {
    require(network != nullptr, "a network, got null");
    require(out != nullptr, "a place for the bytes, got null");
    *out = workspace_bytes(network->plan, {n, h, w});
  });
}

srgan_fast_status srgan_fast_enqueue(const srgan_fast_network* network, const void* frames, void* out, int n, int h,
                                     int w, void* workspace, size_t workspace_size, void* cuda_stream) {
  return guarded([&] {
    require(network != nullptr, "a network, got null");
    require(frames != nullptr, "frames, got null");
    require(out != nullptr, "memory for the result, got null");
    const Plan& plan = network->plan;
    const size_t needed = workspace_bytes(plan, {n, h, w});
    require(workspace != nullptr, "a workspace, got null");
    require(reinterpret_cast<uintptr_t>(workspace) % kAlignment == 0, "a workspace aligned to 256 bytes");
    require(reinterpret_cast<uintptr_t>(out) % 4 == 0, "memory for the result aligned to 4 bytes");
    if (workspace_size < needed)
      fail(SRGAN_FAST_WORKSPACE_TOO_SMALL, "expected a workspace of " + std::to_string(needed) + " bytes, got " +
                                               std::to_string(workspace_size) +
                                               "; ask srgan_fast_workspace_bytes for these frames");
    const size_t frame_bytes = static_cast<size_t>(n) * h * w * 3, out_bytes = frame_bytes * plan.scale * plan.scale;
    require(!overlap(frames, frame_bytes, out, out_bytes) && !overlap(frames, frame_bytes, workspace, needed) &&
                !overlap(out, out_bytes, workspace, needed),
            "frames, result and workspace in memory of their own");
    Sm90 ops(*network->device, cuda_stream, network->layout, network->device->processors());
    run(plan, ops, static_cast<const uint8_t*>(network->weights), static_cast<const uint8_t*>(frames),
        static_cast<uint8_t*>(out), {n, h, w}, static_cast<uint8_t*>(workspace));
  });
}

void srgan_fast_destroy(srgan_fast_network* network) { delete network; }

}  // extern "C"
