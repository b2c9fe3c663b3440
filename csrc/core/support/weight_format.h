// The float formats that the numeric operations read; the numbers are those of the Python side.
#pragma once

namespace graftwork {

enum class WeightFormat : int { float16 = 0, bfloat16 = 1, float32 = 2 };

}  // namespace graftwork
