/* Goes through every function as a program in C does, on a machine with or without a GPU: codes, texts, no crash. */
#include <srgan_fast.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

static void expect(int kept, const char* what, int line) {
  if (kept) return;
  fprintf(stderr, "line %d: not so: %s; last error: %s\n", line, what, srgan_fast_last_error());
  ++failures;
}

#define EXPECT(condition) expect((condition), #condition, __LINE__)
#define SAYS(text) EXPECT(strstr(srgan_fast_last_error(), (text)) != NULL)

static void texts(void) {
  int status;
  EXPECT(srgan_fast_version() == SRGAN_FAST_VERSION);
  EXPECT(strcmp(srgan_fast_error_string(SRGAN_FAST_OK), "no error") == 0);
  for (status = 0; status <= SRGAN_FAST_OUT_OF_MEMORY; ++status) {
    EXPECT(strlen(srgan_fast_error_string((srgan_fast_status)status)) > 5);
    EXPECT(strcmp(srgan_fast_error_string((srgan_fast_status)status), "unknown status") != 0);
  }
  EXPECT(strcmp(srgan_fast_error_string((srgan_fast_status)12), "unknown status") == 0);
  EXPECT(strcmp(srgan_fast_error_string((srgan_fast_status)-1), "unknown status") == 0);
}

static void null_pointers(void) {
  srgan_fast_network* network = NULL;
  int scale;
  size_t bytes;
  char memory[4];
  EXPECT(srgan_fast_create(NULL, 0, &network) == SRGAN_FAST_BAD_ARGUMENT);
  SAYS("path");
  EXPECT(srgan_fast_create("x", 0, NULL) == SRGAN_FAST_BAD_ARGUMENT);
  SAYS("null");
  EXPECT(srgan_fast_create("x", -1, &network) == SRGAN_FAST_BAD_ARGUMENT);
  SAYS("number of a GPU");
  EXPECT(srgan_fast_scale(NULL, &scale) == SRGAN_FAST_BAD_ARGUMENT);
  SAYS("network");
  EXPECT(srgan_fast_network_bytes(NULL, &bytes) == SRGAN_FAST_BAD_ARGUMENT);
  EXPECT(srgan_fast_workspace_bytes(NULL, 1, 1, 1, &bytes) == SRGAN_FAST_BAD_ARGUMENT);
  EXPECT(srgan_fast_enqueue(NULL, memory, memory, 1, 1, 1, memory, 4, NULL) == SRGAN_FAST_BAD_ARGUMENT);
  SAYS("network");
  srgan_fast_destroy(NULL);
}

static void written(const char* path, const char* bytes, size_t count) {
  FILE* file = fopen(path, "wb");
  if (file == NULL || fwrite(bytes, 1, count, file) != count || fclose(file) != 0) exit(2);
}

static void files(const char* folder) {
  srgan_fast_network* network = (srgan_fast_network*)&failures;
  char path[4096];
  EXPECT(srgan_fast_create("/no/such/file", 0, &network) == SRGAN_FAST_FILE_NOT_FOUND);
  EXPECT(network == NULL);
  SAYS("/no/such/file");
  EXPECT(srgan_fast_create(folder, 0, &network) == SRGAN_FAST_FILE_NOT_FOUND);
  EXPECT(srgan_fast_create("", 0, &network) == SRGAN_FAST_FILE_NOT_FOUND);
  snprintf(path, sizeof path, "%s/damaged.safetensors", folder);
  written(path, "", 0);
  EXPECT(srgan_fast_create(path, 0, &network) == SRGAN_FAST_DAMAGED_FILE);
  SAYS(path);
  written(path, "PK\3\4 not a safetensors file", 27);
  EXPECT(srgan_fast_create(path, 0, &network) == SRGAN_FAST_DAMAGED_FILE);
  written(path, "\2\0\0\0\0\0\0\0{}", 10);
  EXPECT(srgan_fast_create(path, 0, &network) == SRGAN_FAST_DAMAGED_FILE);
  SAYS("srgan-fast convert");
  remove(path);
}

/* What a sound file gives depends on the machine. */
static void network_of(const char* weights) {
  srgan_fast_network* network = NULL;
  const srgan_fast_status status = srgan_fast_create(weights, 0, &network);
  int scale = 0;
  size_t bytes = 0, more = 0;
  int frame[1], result[12];
  if (status != SRGAN_FAST_OK) {
    EXPECT(status == SRGAN_FAST_NO_DRIVER || status == SRGAN_FAST_NO_DEVICE || status == SRGAN_FAST_UNSUPPORTED_DEVICE);
    EXPECT(network == NULL);
    EXPECT(strlen(srgan_fast_last_error()) > 20);
    printf("no network here: %s: %s\n", srgan_fast_error_string(status), srgan_fast_last_error());
    return;
  }
  EXPECT(srgan_fast_create(weights, 10000, &network) == SRGAN_FAST_NO_DEVICE);
  EXPECT(srgan_fast_create(weights, 0, &network) == SRGAN_FAST_OK);
  EXPECT(srgan_fast_scale(network, &scale) == SRGAN_FAST_OK && scale == 4);
  EXPECT(srgan_fast_scale(network, NULL) == SRGAN_FAST_BAD_ARGUMENT);
  EXPECT(srgan_fast_network_bytes(network, &bytes) == SRGAN_FAST_OK && bytes > 100000);
  EXPECT(srgan_fast_workspace_bytes(network, 1, 8, 8, &bytes) == SRGAN_FAST_OK);
  EXPECT(srgan_fast_workspace_bytes(network, 2, 8, 8, &more) == SRGAN_FAST_OK && more > bytes);
  EXPECT(srgan_fast_workspace_bytes(network, 0, 8, 8, &more) == SRGAN_FAST_BAD_ARGUMENT);
  EXPECT(srgan_fast_workspace_bytes(network, 1, 1 << 30, 1 << 30, &more) == SRGAN_FAST_BAD_ARGUMENT);
  EXPECT(srgan_fast_enqueue(network, frame, result, 1, 1, 1, NULL, 0, NULL) == SRGAN_FAST_BAD_ARGUMENT);
  EXPECT(srgan_fast_enqueue(network, frame, result, 1, 1, 1, (void*)256, 8, NULL) == SRGAN_FAST_WORKSPACE_TOO_SMALL);
  EXPECT(srgan_fast_enqueue(network, frame, result, 1, 1, 1, (void*)257, bytes, NULL) == SRGAN_FAST_BAD_ARGUMENT);
  EXPECT(srgan_fast_enqueue(network, frame, frame, 1, 1, 1, (void*)256, bytes, NULL) == SRGAN_FAST_BAD_ARGUMENT);
  srgan_fast_destroy(network);
}

int main(int count, char** words) {
  if (count != 3) return 2;
  EXPECT(strcmp(srgan_fast_last_error(), "") == 0);
  texts();
  null_pointers();
  files(words[2]);
  network_of(words[1]);
  return failures != 0;
}
