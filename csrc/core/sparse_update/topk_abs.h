// The ks[t] largest |x| of each tensor t, exactly; the rest as in topk_absdiff.h, each tensor on its own.
#pragma once

#include <cstdint>

namespace graftwork {

void topk_abs(const void* const* tensors, const int64_t* offsets, const int32_t* formats, int64_t count,
              const int64_t* ks, void* indices, int index_bytes, int64_t* nan_tensor, uint8_t* workspace,
              int64_t workspace_bytes, int threads);

}  // namespace graftwork
