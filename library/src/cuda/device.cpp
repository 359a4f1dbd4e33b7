// A GPU by the CUDA runtime, which is linked in, and by the one function of the driver that the runtime does not have.
#include "../device.hpp"

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstring>
#include <string>

#include "../failure.hpp"

namespace srgan_fast::host {
namespace {

constexpr int kMajor = 9, kMinor = 0;  // the compute capability that the kernels are for
constexpr int kOldestDriver = 12030;   // the first that captures launches which overlap into graphs

[[noreturn]] void failed(const std::string& what, cudaError_t code) {
  // An error that is left behind would be taken for one of the next call.
  cudaGetLastError();
  const auto status = code == cudaErrorMemoryAllocation ? SRGAN_FAST_OUT_OF_MEMORY : SRGAN_FAST_LAUNCH_FAILED;
  fail(status, what + ": CUDA says " + cudaGetErrorName(code) + ", " + cudaGetErrorString(code));
}

void expect(cudaError_t code, const std::string& what) {
  if (code != cudaSuccess) failed(what, code);
}

// Makes a device the thread's current one, and puts back what was current before.
class Current {
 public:
  explicit Current(int number) : number_(number) {
    expect(cudaGetDevice(&before_), "cannot ask for the current GPU");
    if (before_ != number_) expect(cudaSetDevice(number_), "cannot turn to GPU " + std::to_string(number_));
  }
  ~Current() {
    if (before_ != number_) cudaSetDevice(before_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  int number_, before_ = 0;
};

class Gpu : public Device {
 public:
  explicit Gpu(int number) : number_(number) {
    const Current current(number_);
    expect(cudaFree(nullptr), "cannot start GPU " + std::to_string(number_));
    expect(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, number_), "cannot ask the GPU");
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t code =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    if (code != cudaSuccess || found != cudaDriverEntryPointSuccess || function == nullptr) {
      cudaGetLastError();
      fail(SRGAN_FAST_NO_DRIVER, "the NVIDIA driver has no cuTensorMapEncodeTiled; install a newer one");
    }
    encode_ = reinterpret_cast<decltype(encode_)>(function);
  }

  int processors() const override { return processors_; }

  void* allocate(size_t bytes) override {
    const Current current(number_);
    void* memory = nullptr;
    expect(cudaMalloc(&memory, bytes), "cannot take " + std::to_string(bytes) + " bytes of GPU memory");
    return memory;
  }

  void release(void* memory) override {
    // What the GPU has to say of earlier work belongs to who waits for it.
    cudaFree(memory);
    cudaGetLastError();
  }

  void upload(void* to, const void* from, size_t bytes) override {
    const Current current(number_);
    expect(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cannot copy to the GPU");
  }

  void download(void* to, const void* from, size_t bytes) override {
    const Current current(number_);
    expect(cudaDeviceSynchronize(), "the self-check failed on the GPU");
    expect(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cannot copy from the GPU");
  }

  void prepare(const Kernel& kernel) override {
    const Current current(number_);
    // This loads the kernel too: CUDA would do so at the first launch, which may be within a capture.
    expect(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes),
           "cannot load a kernel");
  }

  TensorMap map(const Tiled& tiled) const override {
    cuuint64_t strides[5] = {};
    uint64_t stride = 2;
    for (size_t i = 0; i + 1 < tiled.sizes.size(); ++i) strides[i] = stride *= tiled.sizes[i];
    const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
    cuuint64_t sizes[5] = {};
    std::memcpy(sizes, tiled.sizes.data(), tiled.sizes.size() * sizeof(sizes[0]));
    TensorMap result;
    static_assert(sizeof(result) == sizeof(CUtensorMap), "what the driver fills");
    const CUresult code = encode_(reinterpret_cast<CUtensorMap*>(&result), CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                                  static_cast<cuuint32_t>(tiled.sizes.size()), const_cast<void*>(tiled.address), sizes,
                                  strides, tiled.box.data(), steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                  tiled.swizzle == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                                  CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code != CUDA_SUCCESS)
      fail(SRGAN_FAST_LAUNCH_FAILED, "the driver refuses a tensor map: error " + std::to_string(code));
    return result;
  }

  void launch(const Kernel& kernel, unsigned across, unsigned down, unsigned threads, const void* parameters,
              void* stream, const char* what) const override {
    const Current current(number_);
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = {across, down, 1};
    config.blockDim = {threads, 1, 1};
    config.dynamicSmemBytes = static_cast<size_t>(kernel.shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &early;
    config.numAttrs = 1;
    void* arguments[] = {const_cast<void*>(parameters)};
    expect(cudaLaunchKernelExC(&config, kernel.function, arguments), std::string("cannot launch ") + what);
  }

 private:
  int number_, processors_ = 0;
  CUresult (*encode_)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                      const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) = nullptr;
};

}  // namespace

std::unique_ptr<Device> open_device(int number) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess && code != cudaErrorNoDevice) {
    cudaGetLastError();
    fail(SRGAN_FAST_NO_DRIVER, std::string("expected an NVIDIA driver for CUDA ") +
                                   std::to_string(CUDART_VERSION / 1000) + " or later, got " +
                                   cudaGetErrorString(code) + "; install or update the driver");
  }
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver < kOldestDriver)
    fail(SRGAN_FAST_NO_DRIVER, "expected an NVIDIA driver for CUDA 12.3 or later, got one for " +
                                   std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) +
                                   "; update the driver");
  if (code == cudaErrorNoDevice || number >= count) {
    cudaGetLastError();
    fail(SRGAN_FAST_NO_DEVICE, "expected GPU " + std::to_string(number) + ", got " + std::to_string(count) +
                                   " GPUs; check nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
  int major = 0, minor = 0;
  expect(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number), "cannot ask the GPU");
  expect(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, number), "cannot ask the GPU");
  if (major != kMajor || minor != kMinor)
    fail(SRGAN_FAST_UNSUPPORTED_DEVICE, "expected a GPU of compute capability 9.0, got " + std::to_string(major) + "." +
                                            std::to_string(minor) + "; take the Python package for it");
  return std::make_unique<Gpu>(number);
}

}  // namespace srgan_fast::host
