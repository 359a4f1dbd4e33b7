// Whether a device's kernels are right: each is held against the reference before a network is used.
#pragma once

#include "device.hpp"
#include "plan.hpp"

namespace srgan_fast::host {

// The layout of tiles that the device reads rightly; makes every kernel that it needs ready and holds each against the
// reference, and then the whole network `plan`, whose weights lie at `weights` on the device, on a small frame.
// Throws Failure: FAILED_CHECK with the figure.
int checked_layout(Device& device, const Plan& plan, const uint8_t* weights);

}  // namespace srgan_fast::host
