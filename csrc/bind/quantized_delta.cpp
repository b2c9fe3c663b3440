#include "bind/core.h"
#include "core/quantized_delta/delta_quantize.h"
#include "core/quantized_delta/dequant_add.h"
#include "core/quantized_delta/mark_kept.h"
#include "core/quantized_delta/pack_bits.h"

namespace graftwork {

void bind_quantized_delta(pybind11::module_& module) {
  bind<delta_quantize>(module, "delta_quantize");
  bind<dequant_add>(module, "dequant_add");
  bind<mark_kept>(module, "mark_kept");
  bind<mark_drawn>(module, "mark_drawn");
  bind<pack_bits>(module, "pack_bits");
  bind<unpack_bits>(module, "unpack_bits");
}

}  // namespace graftwork
