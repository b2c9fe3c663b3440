// SHA-256 of many byte ranges, two at a time.
//
// One SHA-256 is a chain of dependent instructions, and fills half of the time of the unit that runs them. Two
// interleaved chains fill it: 3.5 GB/s a core where one makes 1.8 (Zen 4).
#pragma once

#include <cstdint>

namespace graftwork {

constexpr int64_t kDigestBytes = 32;

// Whether this CPU has the instructions (SHA extensions, on x86-64 only), and GRAFTWORK_SIMD does not say baseline.
bool has_sha256();

// ranges: [count][2], address and bytes of each. digests: [count][kDigestBytes]. One thread.
// Throws std::invalid_argument unless has_sha256().
void sha256(const int64_t* ranges, int64_t count, uint8_t* digests);

}  // namespace graftwork
