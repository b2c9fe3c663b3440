#include "bind/core.h"
#include "core/digest/sha256.h"

namespace graftwork {

void bind_digest(pybind11::module_& module) {
  module.def("has_sha256", &has_sha256);
  bind<sha256>(module, "sha256");
}

}  // namespace graftwork
