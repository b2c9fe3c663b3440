#include "bind/core.h"
#include "core/lossless_delta/delta_stats.h"
#include "core/lossless_delta/ordinal_planes.h"
#include "core/lossless_delta/update_survival.h"

namespace graftwork {

void bind_lossless_delta(pybind11::module_& module) {
  bind<encode_ordinal_planes>(module, "encode_ordinal_planes");
  bind<decode_ordinal_planes>(module, "decode_ordinal_planes");
  bind<delta_stats>(module, "delta_stats");
  bind<update_survival>(module, "update_survival");
}

}  // namespace graftwork
