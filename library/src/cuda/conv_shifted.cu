#include "table.cuh"

namespace srgan_fast::host {

template <>
const std::vector<Kernel>& conv_table<kShifted>(bool residual) {
  return conv_table_of<kShifted, 2, 32>(residual);
}

}  // namespace srgan_fast::host
