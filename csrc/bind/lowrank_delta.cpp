#include "bind/core.h"
#include "core/quantized_delta/gptq_block.h"

namespace graftwork {

void bind_lowrank_delta(pybind11::module_& module) { bind<gptq_block>(module, "gptq_block"); }

}  // namespace graftwork
