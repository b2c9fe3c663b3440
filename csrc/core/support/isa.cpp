#include "core/support/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace graftwork {
namespace {

IsaLevel widest_level() {
#ifdef GRAFTWORK_X86_LEVELS
  // Features instead of "x86-64-v3" and "x86-64-v4", which not every compiler knows; no CPU has these without the rest.
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return IsaLevel::avx512;
  if (avx2) return IsaLevel::avx2;
#endif
  return IsaLevel::baseline;
}

IsaLevel choose_level() {
  const IsaLevel widest = widest_level();
  const char* const wanted = std::getenv("GRAFTWORK_SIMD");
  if (wanted == nullptr || *wanted == '\0') return widest;
  for (const IsaLevel level : {IsaLevel::baseline, IsaLevel::avx2, IsaLevel::avx512}) {
    if (std::string(wanted) != isa_level_name(level)) continue;
    if (level <= widest) return level;
    throw std::invalid_argument(std::string("GRAFTWORK_SIMD=") + wanted + ", but the widest level here is " +
                                isa_level_name(widest) + "; unset it or choose a narrower level");
  }
  throw std::invalid_argument(std::string("GRAFTWORK_SIMD=") + wanted +
                              " is no ISA level; wanted baseline, avx2 or avx512, or unset");
}

}  // namespace

IsaLevel isa_level() {
  static const IsaLevel level = choose_level();
  return level;
}

const char* isa_level_name(IsaLevel level) {
  switch (level) {
    case IsaLevel::avx512: return "avx512";
    case IsaLevel::avx2: return "avx2";
    case IsaLevel::baseline: break;
  }
  return "baseline";
}

}  // namespace graftwork
