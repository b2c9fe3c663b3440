#include "bind/cuda.h"
#include "cuda/sparse_update/merge_deltas.cuh"
#include "cuda/sparse_update/sparse_adamw.cuh"
#include "cuda/sparse_update/sparse_sgd.cuh"
#include "cuda/sparse_update/swap_values.cuh"
#include "cuda/sparse_update/topk_absdiff.cuh"
#include "cuda/sparse_update/values.cuh"

namespace graftwork::cuda {

void bind_sparse_update(pybind11::module_& module) {
  bind<gather_values>(module, "gather_values");
  bind<restore_values>(module, "restore_values");
  bind<write_values>(module, "write_values");
  bind<gather_gradients>(module, "gather_gradients");
  module.def("gather_gradients_workspace_bytes", &gather_gradients_workspace_bytes);
  bind<swap_values>(module, "swap_values");
  module.def("swap_values_workspace_bytes", &swap_values_workspace_bytes);
  bind<sparse_adamw>(module, "sparse_adamw");
  bind<sparse_sgd>(module, "sparse_sgd");
  bind<topk_absdiff>(module, "topk_absdiff");
  module.def("topk_absdiff_workspace_bytes", &topk_absdiff_workspace_bytes);
  module.attr("selection_tile") = selection_tile();
  bind<count_shared>(module, "count_shared");
  bind<merge_deltas>(module, "merge_deltas");
  module.def("merge_deltas_workspace_bytes", &merge_deltas_workspace_bytes);
}

}  // namespace graftwork::cuda
