// How a CUDA launcher becomes a function of the module: pointers, streams and enumerations are Python
// integers, and an error code becomes an exception whose message starts with the operation's name.
#pragma once

#include "bind/core.h"
#include "cuda/support/device.cuh"

namespace graftwork::cuda {

template <auto launcher, class... Args>
void bind_as(pybind11::module_& module, const char* name, int (*)(Args...)) {
  module.def(name, [name](FromPython<Args>... args) {
    const int error = launcher(to_core<Args>(args)...);
    if (error == 0) return;
    const std::string message = std::string(name) + ": " + error_message(error);
    if (error == kInvalidArgument) throw std::invalid_argument(message);
    throw std::runtime_error(message);
  });
}

template <auto launcher>
void bind(pybind11::module_& module, const char* name) {
  bind_as<launcher>(module, name, launcher);
}

}  // namespace graftwork::cuda
