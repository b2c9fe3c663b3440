#include "bind/core.h"
#include "core/merge/elementwise.h"
#include "core/merge/merge_gram.h"
#include "core/merge/merge_many.h"
#include "core/merge/thresholds.h"

namespace graftwork {

void bind_merge(pybind11::module_& module) {
  bind<add_diff>(module, "add_diff");
  bind<nearswap>(module, "nearswap");
  bind<philox_uniform>(module, "philox_uniform");
  bind<magnitude_thresholds>(module, "magnitude_thresholds");
  bind<count_variance>(module, "count_variance");
  bind<variance_threshold>(module, "variance_threshold");
  module.def("threshold_workspace_bytes", &threshold_workspace_bytes);
  bind<sparsify_norms>(module, "sparsify_norms");
  bind<merge_many>(module, "merge_many");
  module.def("merge_workspace_bytes", &merge_workspace_bytes);
  bind<merge_gram>(module, "merge_gram");
  module.def("gram_workspace_bytes", &gram_workspace_bytes);
}

}  // namespace graftwork
