#include "bind/cuda.h"
#include "cuda/entropy_delta/ordinal_rans.cuh"
#include "cuda/entropy_delta/rans_segments.h"

namespace graftwork::cuda {

void bind_entropy_delta(pybind11::module_& module) {
  bind<decode_ordinal_rans>(module, "decode_ordinal_rans");
  module.attr("rans_segment_bytes") = sizeof(RansSegment);
  module.attr("rans_head_bytes") = kRansHeadBytes;
  module.def("rans_segment_count", [](uintptr_t frame, int64_t payload_bytes, int64_t numel) {
    return rans_segment_count(to_core<const uint8_t*>(frame), payload_bytes, numel);
  });
  module.def("parse_rans_segments", [](uintptr_t frame, uintptr_t heads, int64_t payload_bytes, int64_t numel,
                                       int format, uintptr_t segments) {
    return parse_rans_segments(to_core<const uint8_t*>(frame), to_core<const uint8_t*>(heads), payload_bytes,
                               numel, to_core<WeightFormat>(format), to_core<RansSegment*>(segments));
  });
}

}  // namespace graftwork::cuda
