#include "srgan_fast.h"

extern "C" int srgan_fast_version(void) { return SRGAN_FAST_VERSION; }

extern "C" const char* srgan_fast_error_string(srgan_fast_status status) {
  switch (status) {
    case SRGAN_FAST_OK:
      return "no error";
    case SRGAN_FAST_BAD_ARGUMENT:
      return "bad argument";
    case SRGAN_FAST_FILE_NOT_FOUND:
      return "file not found or not readable";
    case SRGAN_FAST_DAMAGED_FILE:
      return "not a weights file of srgan-fast, or damaged";
    case SRGAN_FAST_UNSUPPORTED_NETWORK:
      return "unsupported network";
    case SRGAN_FAST_NO_DRIVER:
      return "no NVIDIA driver, or one that is too old";
    case SRGAN_FAST_NO_DEVICE:
      return "no such GPU";
    case SRGAN_FAST_UNSUPPORTED_DEVICE:
      return "unsupported GPU: compute capability 9.0 is needed";
    case SRGAN_FAST_FAILED_CHECK:
      return "the GPU disagrees with the reference";
    case SRGAN_FAST_WORKSPACE_TOO_SMALL:
      return "workspace too small";
    case SRGAN_FAST_LAUNCH_FAILED:
      return "launch failed";
    case SRGAN_FAST_OUT_OF_MEMORY:
      return "out of memory";
  }
  return "unknown status";
}
