#include "bind/core.h"
#include "core/entropy_delta/ordinal_rans.h"
#include "core/entropy_delta/sparse_delta.h"

namespace graftwork {

void bind_entropy_delta(pybind11::module_& module) {
  bind<encode_ordinal_rans>(module, "encode_ordinal_rans");
  bind<decode_ordinal_rans>(module, "decode_ordinal_rans");
  module.def("ordinal_rans_payload_bound", &ordinal_rans_payload_bound);
  module.def("ordinal_rans_workspace_bytes", &ordinal_rans_workspace_bytes);
  bind<encode_sparse_delta>(module, "encode_sparse_delta");
  bind<decode_sparse_delta>(module, "decode_sparse_delta");
  bind<apply_sparse_delta>(module, "apply_sparse_delta");
  bind<apply_sparse_chunks>(module, "apply_sparse_chunks");
  bind<decode_sparse_chunks>(module, "decode_sparse_chunks");
  module.def("sparse_delta_payload_bound", &sparse_delta_payload_bound);
  module.def("sparse_delta_workspace_bytes", &sparse_delta_workspace_bytes);
}

}  // namespace graftwork
