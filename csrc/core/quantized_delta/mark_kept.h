// Which differences of two tensors a sparse delta keeps, as a set of bits: bit i mod 8 of byte i / 8 is difference i.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork {

// threshold: those of at least a magnitude; two_of_four: the two largest of every four, equal ones by index; drawn: those
// whose Philox word's upper 24 bits are below a number.
enum class KeepRule : int { threshold = 0, two_of_four = 1, drawn = 2 };

// base may be null: then tuned is the difference. report: how many are kept; the index of the first difference that is
// not finite, or -1, and then the rest is undefined. Nothing depends on threads or ISA level.
void mark_kept(const void* tuned, const void* base, int64_t numel, WeightFormat format, KeepRule rule,
               float least, uint32_t key_low, uint32_t key_high, int64_t below, uint8_t* bitmap,
               int64_t* report, int threads);

// The same set by the rule `drawn`, which needs no differences.
void mark_drawn(int64_t numel, uint32_t key_low, uint32_t key_high, int64_t below, uint8_t* bitmap,
                int threads);

}  // namespace graftwork
