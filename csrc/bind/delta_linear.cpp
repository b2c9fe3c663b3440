#include "core/quantized_delta/delta_linear.h"
#include "bind/core.h"
#include "core/quantized_delta/delta_combine.h"

namespace graftwork {

void bind_delta_linear(pybind11::module_& module) {
  bind<delta_linear>(module, "delta_linear");
  module.def("delta_linear_token_bytes", &delta_linear_token_bytes);
  bind<delta_combine>(module, "delta_combine");
  module.def("delta_combine_bytes", &delta_combine_bytes);
}

}  // namespace graftwork
