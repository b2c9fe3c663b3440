#include "bind/cuda.h"
#include "cuda/lossless_delta/delta_stats.cuh"
#include "cuda/lossless_delta/ordinal_planes.cuh"

namespace graftwork::cuda {

void bind_lossless_delta(pybind11::module_& module) {
  bind<encode_ordinal_planes>(module, "encode_ordinal_planes");
  bind<decode_ordinal_planes>(module, "decode_ordinal_planes");
  bind<delta_stats>(module, "delta_stats");
  module.def("delta_stats_workspace_bytes", [](int64_t numel, int format) {
    return delta_stats_workspace_bytes(numel, static_cast<WeightFormat>(format));
  });
}

}  // namespace graftwork::cuda
