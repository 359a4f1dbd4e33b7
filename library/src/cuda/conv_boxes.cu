#include "table.cuh"

namespace srgan_fast::host {

template <>
const std::vector<Kernel>& conv_table<kBoxes>(bool residual) {
  return conv_table_of<kBoxes, 2, 16>(residual);
}

}  // namespace srgan_fast::host
