// What the library makes of a weights file, without a GPU: for the tests.
//
//   inspect weights FILE            the block of packed weights to standard output
//   inspect steps FILE              its steps, one a line
//   inspect workspace FILE n h w    bytes of workspace
//   inspect run FILE n h w          frames from standard input, pictures to standard output, by the reference
//   inspect rows n h w columns computed blocks steps heights...    the height of tiles
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "failure.hpp"
#include "plan.hpp"
#include "reference.hpp"
#include "tiles.hpp"

using namespace srgan_fast::host;

static Plan plan_from(const char* path) { return plan_of(path, network_of(path, read_weights(path))); }

static int inspect(int count, char** words) {
  const std::string what = words[1];
  const auto number = [&](int i) { return std::atoi(words[i]); };
  if (what == "rows") {
    std::vector<int> heights;
    for (int i = 9; i < count; ++i) heights.push_back(number(i));
    const Size size{number(2), number(3), number(4)};
    std::printf("%d\n", tile_rows(size, number(5), number(6), number(7), number(8), heights));
    return 0;
  }
  const Plan plan = plan_from(words[2]);
  if (what == "weights") {
    std::fwrite(plan.weights.data(), 1, plan.weights.size(), stdout);
  } else if (what == "steps") {
    std::printf("%zu %zu %zu %zu\n", plan.input_gain, plan.input_offset, plan.output_gain, plan.output_offset);
    for (const Step& step : plan.steps)
      std::printf("%d %d %d %d %zu %zu %zd\n", step.op, step.scale, step.slices, step.r, step.weight, step.bias,
                  static_cast<ssize_t>(step.slopes));
  } else if (what == "workspace") {
    std::printf("%zu\n", workspace_bytes(plan, {number(3), number(4), number(5)}));
  } else {
    const Size size{number(3), number(4), number(5)};
    const size_t pixels = static_cast<size_t>(size.n) * size.h * size.w;
    std::vector<uint8_t> frames(pixels * 3), out(frames.size() * plan.scale * plan.scale);
    // Full of NaN: what a step leaves unwritten, or reads too early, reaches the picture.
    std::vector<uint8_t> workspace(workspace_bytes(plan, size), 0xFF);
    if (std::fread(frames.data(), 1, frames.size(), stdin) != frames.size()) return 2;
    Reference reference;
    run(plan, reference, plan.weights.data(), frames.data(), out.data(), size, workspace.data());
    std::fwrite(out.data(), 1, out.size(), stdout);
  }
  return 0;
}

int main(int count, char** words) {
  try {
    return count < 3 ? 2 : inspect(count, words);
  } catch (const Failure& failure) {
    std::fprintf(stderr, "%s: %s\n", srgan_fast_error_string(failure.status), failure.text.c_str());
    return 1;
  }
}
