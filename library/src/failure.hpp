// How a function of the library says that it failed; the C interface turns it into a status and a text.
#pragma once

#include <string>
#include <utility>

#include "srgan_fast.h"

namespace srgan_fast::host {

struct Failure {
  srgan_fast_status status;
  std::string text;  // what was expected, what came, what to do
};

[[noreturn]] inline void fail(srgan_fast_status status, std::string text) { throw Failure{status, std::move(text)}; }

}  // namespace srgan_fast::host
