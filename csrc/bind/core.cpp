#include "bind/core.h"

#include "core/support/isa.h"

namespace graftwork {
void bind_delta_linear(pybind11::module_& module);
void bind_digest(pybind11::module_& module);
void bind_entropy_delta(pybind11::module_& module);
void bind_lossless_delta(pybind11::module_& module);
void bind_lowrank_delta(pybind11::module_& module);
void bind_merge(pybind11::module_& module);
void bind_quantized_delta(pybind11::module_& module);
void bind_sparse_update(pybind11::module_& module);
}  // namespace graftwork

PYBIND11_MODULE(_core, module) {
  module.doc() = "The CPU operations of graftwork; graftwork.ops checks the arguments and calls them.";
  module.def("isa_level", [] { return graftwork::isa_level_name(graftwork::isa_level()); });
  graftwork::bind_delta_linear(module);
  graftwork::bind_digest(module);
  graftwork::bind_entropy_delta(module);
  graftwork::bind_lossless_delta(module);
  graftwork::bind_lowrank_delta(module);
  graftwork::bind_merge(module);
  graftwork::bind_quantized_delta(module);
  graftwork::bind_sparse_update(module);
}
