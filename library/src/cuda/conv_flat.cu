#include "table.cuh"

namespace srgan_fast::host {

template <>
const std::vector<Kernel>& conv_table<kFlat>(bool residual) {
  return conv_table_of<kFlat, 1, 8>(residual);
}

}  // namespace srgan_fast::host
