/* Enlarges a picture: upscale_ppm WEIGHTS.safetensors IN.ppm OUT.ppm */
#include <cuda_runtime_api.h>
#include <limits.h>
#include <srgan_fast.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  int width, height;
  unsigned char* pixels; /* RGB, row by row */
} picture;

/* A number of a PPM header, behind blanks and comments; -1 if there is none. */
static int number(FILE* file) {
  int c = getc(file), value = 0, digits = 0;
  while (c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '#') {
    if (c == '#')
      while (c != '\n' && c != EOF) c = getc(file);
    c = getc(file);
  }
  for (; c >= '0' && c <= '9' && value < 1000000; c = getc(file), ++digits) value = 10 * value + c - '0';
  return digits > 0 && (c == ' ' || c == '\t' || c == '\r' || c == '\n') ? value : -1;
}

static int read_ppm(const char* path, picture* out) {
  FILE* file = fopen(path, "rb");
  int levels, sound = 0;
  out->pixels = NULL;
  if (file == NULL) {
    perror(path);
    return 0;
  }
  if (getc(file) == 'P' && getc(file) == '6') {
    out->width = number(file);
    out->height = number(file);
    levels = number(file);
    if (out->width > 0 && out->height > 0 && levels == 255 && out->width <= INT_MAX / 3 / out->height) {
      const size_t bytes = (size_t)out->width * (size_t)out->height * 3;
      out->pixels = malloc(bytes);
      sound = out->pixels != NULL && fread(out->pixels, 1, bytes, file) == bytes;
    }
  }
  fclose(file);
  if (!sound) fprintf(stderr, "%s: expected a binary PPM (P6) of 255 levels\n", path);
  return sound;
}

static int write_ppm(const char* path, const picture* image) {
  FILE* file = fopen(path, "wb");
  const size_t bytes = (size_t)image->width * (size_t)image->height * 3;
  int sound = file != NULL;
  sound = sound && fprintf(file, "P6\n%d %d\n255\n", image->width, image->height) > 0;
  sound = sound && fwrite(image->pixels, 1, bytes, file) == bytes;
  if (file != NULL) sound = fclose(file) == 0 && sound;
  if (!sound) {
    perror(path);
    if (file != NULL) remove(path); /* no half-written picture */
  }
  return sound;
}

static int network_said(srgan_fast_status status) {
  if (status == SRGAN_FAST_OK) return 1;
  fprintf(stderr, "srgan-fast: %s: %s\n", srgan_fast_error_string(status), srgan_fast_last_error());
  return 0;
}

static int cuda_said(cudaError_t status) {
  if (status == cudaSuccess) return 1;
  fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(status));
  return 0;
}

/* Everything that is taken is given back in main, also after a failure in the middle. */
typedef struct {
  srgan_fast_network* network;
  cudaStream_t stream;
  void *frame, *result, *workspace;
  picture in, out;
} work;

static int upscaled(const char* weights, const char* from, const char* to, work* all) {
  int scale;
  size_t in_bytes, out_bytes, workspace_bytes;
  if (!read_ppm(from, &all->in)) return 0;
  if (!network_said(srgan_fast_create(weights, 0, &all->network))) return 0;
  if (!network_said(srgan_fast_scale(all->network, &scale))) return 0;
  if (!network_said(srgan_fast_workspace_bytes(all->network, 1, all->in.height, all->in.width, &workspace_bytes)))
    return 0;
  in_bytes = (size_t)all->in.width * (size_t)all->in.height * 3;
  out_bytes = in_bytes * (size_t)scale * (size_t)scale;
  all->out.width = all->in.width * scale;
  all->out.height = all->in.height * scale;
  all->out.pixels = malloc(out_bytes);
  if (all->out.pixels == NULL) {
    fprintf(stderr, "no memory for a result of %zu bytes\n", out_bytes);
    return 0;
  }
  return cuda_said(cudaStreamCreate(&all->stream)) && cuda_said(cudaMalloc(&all->frame, in_bytes)) &&
         cuda_said(cudaMalloc(&all->result, out_bytes)) && cuda_said(cudaMalloc(&all->workspace, workspace_bytes)) &&
         cuda_said(cudaMemcpyAsync(all->frame, all->in.pixels, in_bytes, cudaMemcpyHostToDevice, all->stream)) &&
         network_said(srgan_fast_enqueue(all->network, all->frame, all->result, 1, all->in.height, all->in.width,
                                         all->workspace, workspace_bytes, all->stream)) &&
         cuda_said(cudaMemcpyAsync(all->out.pixels, all->result, out_bytes, cudaMemcpyDeviceToHost, all->stream)) &&
         cuda_said(cudaStreamSynchronize(all->stream)) && write_ppm(to, &all->out);
}

int main(int count, char** words) {
  work all;
  int done;
  if (count != 4) {
    fprintf(stderr, "usage: upscale_ppm WEIGHTS.safetensors IN.ppm OUT.ppm\n");
    return count == 2 && strcmp(words[1], "--help") == 0 ? 0 : 2;
  }
  memset(&all, 0, sizeof all);
  done = upscaled(words[1], words[2], words[3], &all);
  /* Each of these takes null. */
  srgan_fast_destroy(all.network);
  cudaFree(all.workspace);
  cudaFree(all.result);
  cudaFree(all.frame);
  if (all.stream != NULL) cudaStreamDestroy(all.stream);
  free(all.out.pixels);
  free(all.in.pixels);
  return done ? 0 : 1;
}
