#include "bind/core.h"
#include "core/sparse_update/compare_deltas.h"
#include "core/sparse_update/index_codec.h"
#include "core/sparse_update/merge_deltas.h"
#include "core/sparse_update/reselect.h"
#include "core/sparse_update/sddmm.h"
#include "core/sparse_update/sparse_adamw.h"
#include "core/sparse_update/sparse_sgd.h"
#include "core/sparse_update/sparse_sm3.h"
#include "core/sparse_update/take_entries.h"
#include "core/sparse_update/topk_abs.h"
#include "core/sparse_update/topk_absdiff.h"
#include "core/sparse_update/values.h"

namespace graftwork {

void bind_sparse_update(pybind11::module_& module) {
  bind<gather_values>(module, "gather_values");
  bind<gather_gradients>(module, "gather_gradients");
  bind<write_values>(module, "write_values");
  bind<restore_values>(module, "restore_values");
  bind<swap_values>(module, "swap_values");
  bind<sparse_adamw>(module, "sparse_adamw");
  bind<sparse_sgd>(module, "sparse_sgd");
  bind<sparse_sm3>(module, "sparse_sm3");
  bind<topk_absdiff>(module, "topk_absdiff");
  bind<topk_abs>(module, "topk_abs");
  module.def("selection_workspace_bytes", &selection_workspace_bytes);
  bind<reselect>(module, "reselect");
  bind<take_entries>(module, "take_entries");
  bind<count_union>(module, "count_union");
  bind<merge_deltas>(module, "merge_deltas");
  module.def("merge_workspace_words", &merge_workspace_words);
  bind<compare_deltas>(module, "compare_deltas");
  module.def("compare_workspace_words", &compare_workspace_words);
  bind<sddmm>(module, "sddmm");
  module.def("sddmm_workspace_bytes", &sddmm_workspace_bytes);
  bind<encode_indices>(module, "encode_indices");
  bind<count_indices>(module, "count_indices");
  bind<decode_indices>(module, "decode_indices");
  module.def("index_code_bound", &index_code_bound);
}

}  // namespace graftwork
