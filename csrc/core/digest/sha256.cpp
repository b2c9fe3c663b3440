#include "core/digest/sha256.h"

#include <stdexcept>

#include "core/support/isa.h"

#ifdef GRAFTWORK_X86_LEVELS
#include <cpuid.h>
#include <immintrin.h>

#include <cstring>

// Not a level of its own: CPUs have SHA extensions with AVX-512 and without.
#define GRAFTWORK_SHA __attribute__((target("sha,ssse3,sse4.1")))

namespace graftwork {
namespace {

constexpr int64_t kBlockBytes = 64;

alignas(16) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// One message on its way: its whole blocks lie where they are, then come the one or two blocks of its padded end.
struct Message {
  __m128i abef, cdgh;  // the eight state words, as the instructions want them
  const uint8_t* at;
  int64_t blocks;  // left at `at`
  bool in_end;
  uint8_t* digest;
  int end_blocks;
  alignas(16) uint8_t end[2 * kBlockBytes];
};

GRAFTWORK_SHA void begin(Message& message, const uint8_t* data, int64_t nbytes, uint8_t* digest) {
  message.abef =
      _mm_set_epi32(0x6a09e667, static_cast<int>(0xbb67ae85), 0x510e527f, static_cast<int>(0x9b05688c));
  message.cdgh = _mm_set_epi32(0x3c6ef372, static_cast<int>(0xa54ff53a), 0x1f83d9ab, 0x5be0cd19);
  message.at = data;
  message.blocks = nbytes / kBlockBytes;
  message.in_end = false;
  message.digest = digest;
  const int64_t rest = nbytes % kBlockBytes;
  message.end_blocks = rest < kBlockBytes - 8 ? 1 : 2;
  std::memset(message.end, 0, sizeof message.end);
  if (rest) std::memcpy(message.end, data + nbytes - rest, static_cast<size_t>(rest));
  message.end[rest] = 0x80;
  const uint64_t bits = __builtin_bswap64(static_cast<uint64_t>(nbytes) * 8);
  std::memcpy(message.end + message.end_blocks * kBlockBytes - 8, &bits, 8);
}

GRAFTWORK_SHA void finish(Message& message) {
  const __m128i feba = _mm_shuffle_epi32(message.abef, 0x1b), dchg = _mm_shuffle_epi32(message.cdgh, 0xb1);
  const __m128i to_big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const __m128i abcd = _mm_blend_epi16(feba, dchg, 0xf0), efgh = _mm_alignr_epi8(dchg, feba, 8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(message.digest), _mm_shuffle_epi8(abcd, to_big_endian));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(message.digest + 16), _mm_shuffle_epi8(efgh, to_big_endian));
}

// The next `blocks` blocks of kLanes messages, round by round in turn.
template <int kLanes>
GRAFTWORK_SHA void compress(Message* const* messages, int64_t blocks) {
  const __m128i to_big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  __m128i abef[kLanes], cdgh[kLanes], words[kLanes][4];
  const uint8_t* at[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    abef[lane] = messages[lane]->abef;
    cdgh[lane] = messages[lane]->cdgh;
    at[lane] = messages[lane]->at;
    messages[lane]->blocks -= blocks;
  }
  for (; blocks > 0; --blocks) {
    __m128i abef_before[kLanes], cdgh_before[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      abef_before[lane] = abef[lane];
      cdgh_before[lane] = cdgh[lane];
    }
#pragma GCC unroll 16
    for (int four = 0; four < 16; ++four) {  // four rounds at a time
      const __m128i constants = _mm_load_si128(reinterpret_cast<const __m128i*>(kRound + 4 * four));
#pragma GCC unroll 2
      for (int lane = 0; lane < kLanes; ++lane) {
        __m128i& next = words[lane][four % 4];
        if (four < 4) {
          const __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at[lane] + 16 * four));
          next = _mm_shuffle_epi8(block, to_big_endian);
        } else {
          const __m128i last = words[lane][(four + 3) % 4];
          const __m128i seven_ago = _mm_alignr_epi8(last, words[lane][(four + 2) % 4], 4);
          next = _mm_sha256msg1_epu32(next, words[lane][(four + 1) % 4]);
          next = _mm_sha256msg2_epu32(_mm_add_epi32(next, seven_ago), last);
        }
        const __m128i added = _mm_add_epi32(next, constants);
        cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], added);
        abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], _mm_shuffle_epi32(added, 0x0e));
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      abef[lane] = _mm_add_epi32(abef[lane], abef_before[lane]);
      cdgh[lane] = _mm_add_epi32(cdgh[lane], cdgh_before[lane]);
      at[lane] += kBlockBytes;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    messages[lane]->abef = abef[lane];
    messages[lane]->cdgh = cdgh[lane];
    messages[lane]->at = at[lane];
  }
}

// Whether blocks are left, after going from a message's own blocks to its end.
bool go_on(Message& message) {
  if (message.blocks == 0 && !message.in_end) {
    message.in_end = true;
    message.at = message.end;
    message.blocks = message.end_blocks;
  }
  return message.blocks > 0;
}

}  // namespace

bool has_sha256() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  static const bool has_extensions = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
                                     (ebx >> 29 & 1) != 0 && __builtin_cpu_supports("ssse3") &&
                                     __builtin_cpu_supports("sse4.1");
  return has_extensions && isa_level() != IsaLevel::baseline;
}

void sha256(const int64_t* ranges, int64_t count, uint8_t* digests) {
  if (!has_sha256())
    throw std::invalid_argument("this CPU has no instructions for SHA-256, or is told not to use them");
  Message room[2];
  Message* running[2] = {&room[0], &room[1]};
  int held = 0;
  for (int64_t taken = 0; taken < count || held > 0;) {
    while (held < 2 && taken < count) {
      const auto* const data = reinterpret_cast<const uint8_t*>(ranges[2 * taken]);
      begin(*running[held++], data, ranges[2 * taken + 1], digests + kDigestBytes * taken);
      ++taken;
    }
    for (int lane = 0; lane < held; ++lane) go_on(*running[lane]);
    if (held == 2) {
      const int64_t both = running[0]->blocks < running[1]->blocks ? running[0]->blocks : running[1]->blocks;
      compress<2>(running, both);
    } else {
      compress<1>(running, running[0]->blocks);
    }
    for (int lane = held - 1; lane >= 0; --lane) {
      if (go_on(*running[lane])) continue;
      finish(*running[lane]);
      Message* const done = running[lane];
      running[lane] = running[held - 1];
      running[--held] = done;
    }
  }
}

}  // namespace graftwork

#else

namespace graftwork {

bool has_sha256() { return false; }

void sha256(const int64_t*, int64_t, uint8_t*) {
  throw std::invalid_argument("this CPU has no instructions for SHA-256 that graftwork knows");
}

}  // namespace graftwork
#endif
