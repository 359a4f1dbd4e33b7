/* srgan-fast for programs without Python: frames in GPU memory in, larger frames out, on the caller's stream.
 *
 * A network is made from a weights file that srgan-fast wrote, for one GPU of compute capability 9.0 (Hopper). It runs
 * in float16 with float32 sums. After srgan_fast_create nothing is allocated and nothing waits: the caller gives the
 * memory and the stream.
 *
 * Errors: every function that can fail returns a status; nothing is thrown, nothing is printed, and `*out` is written
 * only where the function says so. srgan_fast_last_error has the details of this thread's last failure.
 *
 * Threads: the functions may be called from any thread at any time. Several threads may use one network, and enqueue on
 * several streams, as long as each call in flight has a workspace of its own; srgan_fast_destroy comes after them all.
 *
 * Versions: within one major version, from 1 on, functions and status values are only added. Before that, and across
 * major versions, compile anew.
 */
#ifndef SRGAN_FAST_H
#define SRGAN_FAST_H

#include <stddef.h>

#define SRGAN_FAST_VERSION_MAJOR 0
#define SRGAN_FAST_VERSION_MINOR 1
#define SRGAN_FAST_VERSION_PATCH 0
#define SRGAN_FAST_VERSION \
  (SRGAN_FAST_VERSION_MAJOR * 10000 + SRGAN_FAST_VERSION_MINOR * 100 + SRGAN_FAST_VERSION_PATCH)

#if defined(__GNUC__)
#define SRGAN_FAST_API __attribute__((visibility("default")))
#else
#define SRGAN_FAST_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* A network on one GPU. */
typedef struct srgan_fast_network srgan_fast_network;

typedef enum srgan_fast_status {
  SRGAN_FAST_OK = 0,
  SRGAN_FAST_BAD_ARGUMENT = 1,        /* a null pointer, a size of zero or too large, memory that is not aligned */
  SRGAN_FAST_FILE_NOT_FOUND = 2,      /* no such file, or it cannot be read */
  SRGAN_FAST_DAMAGED_FILE = 3,        /* not a weights file of srgan-fast, or not as it was written */
  SRGAN_FAST_UNSUPPORTED_NETWORK = 4, /* a sound file of a network that this library does not run */
  SRGAN_FAST_NO_DRIVER = 5,           /* no NVIDIA driver, or one older than the library needs */
  SRGAN_FAST_NO_DEVICE = 6,           /* no GPU of that number */
  SRGAN_FAST_UNSUPPORTED_DEVICE = 7,  /* a GPU of another compute capability than 9.0 */
  SRGAN_FAST_FAILED_CHECK = 8,        /* the GPU disagreed with the reference: nothing it gave could be trusted */
  SRGAN_FAST_WORKSPACE_TOO_SMALL = 9,
  SRGAN_FAST_LAUNCH_FAILED = 10, /* CUDA refused a launch, or reported an earlier failure */
  SRGAN_FAST_OUT_OF_MEMORY = 11  /* of the host or of the GPU */
} srgan_fast_status;

/* The version of the library that runs, as SRGAN_FAST_VERSION is that of this header. */
SRGAN_FAST_API int srgan_fast_version(void);

/* What a status means, in one line of English; never null, also for numbers that are no status. Lives for ever. */
SRGAN_FAST_API const char* srgan_fast_error_string(srgan_fast_status status);

/* What the last call of this thread that failed had to say: expected, got, and what to do; "" before the first failure.
 * Never null. Lives until the thread's next failure or end. */
SRGAN_FAST_API const char* srgan_fast_last_error(void);

/* Read a weights file and make its network on a GPU; the kernels are held against a reference there, which takes a
 * second or two, and refused if they disagree.
 *
 *   path    a safetensors file that srgan-fast wrote (`srgan-fast convert`, `srgan-fast train`): SRResNet, the
 *           generator of SRGAN, of 64 channels, x2 or x4, with batch normalisation or without any
 *   device  the number of the GPU, from 0, as CUDA counts them
 *   out     receives the network, which the caller owns: srgan_fast_destroy; null after a failure
 *
 * Allocates the weights on the GPU and waits for it; not to be called while a stream of this thread is captured.
 * Status: BAD_ARGUMENT, FILE_NOT_FOUND, DAMAGED_FILE, UNSUPPORTED_NETWORK, NO_DRIVER, NO_DEVICE, UNSUPPORTED_DEVICE,
 * FAILED_CHECK, LAUNCH_FAILED, OUT_OF_MEMORY; the file is judged before a GPU is looked for. */
SRGAN_FAST_API srgan_fast_status srgan_fast_create(const char* path, int device, srgan_fast_network** out);

/* How many times larger frames become: 2 or 4.
 * Status: BAD_ARGUMENT. */
SRGAN_FAST_API srgan_fast_status srgan_fast_scale(const srgan_fast_network* network, int* out);

/* Bytes of GPU memory that the network itself holds until it is destroyed.
 * Status: BAD_ARGUMENT. */
SRGAN_FAST_API srgan_fast_status srgan_fast_network_bytes(const srgan_fast_network* network, size_t* out);

/* Bytes of workspace that srgan_fast_enqueue needs for n frames of h x w pixels.
 * Status: BAD_ARGUMENT, also for frames larger than the kernels can count. */
SRGAN_FAST_API srgan_fast_status srgan_fast_workspace_bytes(const srgan_fast_network* network, int n, int h, int w,
                                                            size_t* out);

/* Put the work for n frames into a stream, and return without waiting for it.
 *
 *   frames           GPU memory, uint8 [n, h, w, 3]: RGB, sRGB values, rows without padding between them
 *   out              GPU memory, uint8 [n, h*scale, w*scale, 3], same kind, aligned to 4 bytes; it shares nothing with
 *                    `frames` and `workspace`
 *   n, h, w          at least 1 each
 *   workspace        GPU memory, aligned to 256 bytes (as cudaMalloc gives it); its content means nothing, before and
 *                    after
 *   workspace_bytes  at least what srgan_fast_workspace_bytes says
 *   cuda_stream      a cudaStream_t (or CUstream) of the network's device; null is the legacy default stream
 *
 * All memory is the caller's and must live until the stream has come past this work. Nothing is allocated, copied from
 * the host or waited for, so the call can be captured in a CUDA graph. The stream must belong to the device's primary
 * context, which the CUDA runtime uses. The thread's current device is the same before and after.
 * Status: BAD_ARGUMENT, WORKSPACE_TOO_SMALL, LAUNCH_FAILED. After LAUNCH_FAILED a part of the work may be in the
 * stream, and `out` holds nothing of use. What fails later, on the GPU, shows where the caller waits for the stream. */
SRGAN_FAST_API srgan_fast_status srgan_fast_enqueue(const srgan_fast_network* network, const void* frames, void* out,
                                                    int n, int h, int w, void* workspace, size_t workspace_bytes,
                                                    void* cuda_stream);

/* Free a network; null is allowed. Work in flight that uses it must have ended: wait for the streams before. */
SRGAN_FAST_API void srgan_fast_destroy(srgan_fast_network* network);

#ifdef __cplusplus
}
#endif

#endif
