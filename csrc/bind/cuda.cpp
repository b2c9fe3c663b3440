#include "bind/cuda.h"

namespace graftwork::cuda {
void bind_entropy_delta(pybind11::module_& module);
void bind_lossless_delta(pybind11::module_& module);
void bind_sparse_update(pybind11::module_& module);
}  // namespace graftwork::cuda

PYBIND11_MODULE(_cuda, module) {
  module.doc() =
      "The CUDA operations of graftwork; graftwork.ops checks the arguments, selects the tensors' device and "
      "calls them. Each one queues its work on the given stream.";
  module.def("device_count", &graftwork::cuda::device_count);
  graftwork::cuda::bind_entropy_delta(module);
  graftwork::cuda::bind_lossless_delta(module);
  graftwork::cuda::bind_sparse_update(module);
}
