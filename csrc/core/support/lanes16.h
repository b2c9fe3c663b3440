// Sixteen 32-bit lanes, for the loops that plain code does not vectorise: one AVX-512 vector, or two of AVX2. Defined
// where the level has them (GRAFTWORK_HAS_LANES16); every function gives the same bits at both levels.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(GRAFTWORK_LEVEL_IS_avx512)
#include "core/support/lanes16.avx512.inl"
#define GRAFTWORK_HAS_LANES16
#elif defined(GRAFTWORK_LEVEL_IS_avx2)
#include "core/support/lanes16.avx2.inl"
#define GRAFTWORK_HAS_LANES16
#endif
