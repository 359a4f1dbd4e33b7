// The header is C++ too, and the library that runs is the one that the header is of.
#include <srgan_fast.h>

int main() { return srgan_fast_version() == SRGAN_FAST_VERSION ? 0 : 1; }
