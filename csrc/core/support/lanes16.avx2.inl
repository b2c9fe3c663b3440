#pragma once

#include <immintrin.h>

namespace graftwork::GRAFTWORK_LEVEL {

// A set of lanes.
struct Mask16 {
  uint32_t bits;

  int count() const { return __builtin_popcount(bits); }
  bool any() const { return bits != 0; }
};

// For every set of eight lanes: `spread`, the source of each lane of the set (its rank), and `pack`, the lanes of the
// set in order.
struct LaneOrders {
  alignas(8) uint8_t spread[256][8];
  alignas(8) uint8_t pack[256][8];

  constexpr LaneOrders() : spread(), pack() {
    for (int set = 0; set < 256; ++set) {
      int rank = 0;
      for (int lane = 0; lane < 8; ++lane) {
        if (!(set >> lane & 1)) continue;
        spread[set][lane] = static_cast<uint8_t>(rank);
        pack[set][rank++] = static_cast<uint8_t>(lane);
      }
    }
  }
};

constexpr LaneOrders kLaneOrders{};

struct Lanes16 {
  __m256i low, high;

  static __m256i half(const void* from, int index) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from) + index);
  }
  static __m256i order(const uint8_t* lanes) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(lanes)));
  }

  static Lanes16 all(uint32_t value) {
    const __m256i v = _mm256_set1_epi32(static_cast<int>(value));
    return {v, v};
  }
  static Lanes16 load(const void* from) { return {half(from, 0), half(from, 1)}; }
  static Lanes16 load_bytes(const void* from) {
    const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(from));
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
  }
  static Lanes16 load_words(const void* from) {
    const __m256i words = half(from, 0);
    return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(words)),
            _mm256_cvtepu16_epi32(_mm256_extracti128_si256(words, 1))};
  }
  // base[index], for indices below 2^31.
  static Lanes16 gather(const uint32_t* base, Lanes16 index) {
    const int* const from = reinterpret_cast<const int*>(base);
    return {_mm256_i32gather_epi32(from, index.low, 4), _mm256_i32gather_epi32(from, index.high, 4)};
  }
  // At least 17 bits from bit `at` < 480 on, at least 32 from bit `at` < 992 on; they read 64 and 128 bytes.
  static Lanes16 short_bits(const uint8_t* bytes, Lanes16 at) {
    return gather_bytes(bytes, at.right<3>()).right(at & all(7));
  }
  static Lanes16 long_bits(const uint8_t* bytes, Lanes16 at) {
    const Lanes16 shift = at & all(7), offset = at.right<3>();
    return gather_bytes(bytes, offset).right(shift) | gather_bytes(bytes + 4, offset).left(all(32) - shift);
  }
  static Lanes16 gather_bytes(const uint8_t* bytes, Lanes16 offset) {
    const int* const from = reinterpret_cast<const int*>(bytes);
    return {_mm256_i32gather_epi32(from, offset.low, 1), _mm256_i32gather_epi32(from, offset.high, 1)};
  }

  void store(void* to) const {
    _mm256_storeu_si256(static_cast<__m256i*>(to), low);
    _mm256_storeu_si256(static_cast<__m256i*>(to) + 1, high);
  }
  void store_words(void* to) const {
    const __m256i word = _mm256_set1_epi32(0xffff);
    const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(low, word), _mm256_and_si256(high, word));
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
  }

  Lanes16 operator+(Lanes16 o) const {
    return {_mm256_add_epi32(low, o.low), _mm256_add_epi32(high, o.high)};
  }
  Lanes16 operator-(Lanes16 o) const {
    return {_mm256_sub_epi32(low, o.low), _mm256_sub_epi32(high, o.high)};
  }
  Lanes16 operator*(Lanes16 o) const {
    return {_mm256_mullo_epi32(low, o.low), _mm256_mullo_epi32(high, o.high)};
  }
  Lanes16 operator&(Lanes16 o) const {
    return {_mm256_and_si256(low, o.low), _mm256_and_si256(high, o.high)};
  }
  Lanes16 operator|(Lanes16 o) const { return {_mm256_or_si256(low, o.low), _mm256_or_si256(high, o.high)}; }
  Lanes16 operator^(Lanes16 o) const {
    return {_mm256_xor_si256(low, o.low), _mm256_xor_si256(high, o.high)};
  }
  template <int count>
  Lanes16 left() const {
    return {_mm256_slli_epi32(low, count), _mm256_slli_epi32(high, count)};
  }
  template <int count>
  Lanes16 right() const {
    return {_mm256_srli_epi32(low, count), _mm256_srli_epi32(high, count)};
  }
  template <int count>
  Lanes16 right_signed() const {
    return {_mm256_srai_epi32(low, count), _mm256_srai_epi32(high, count)};
  }
  // A count of 32 and more gives zero.
  Lanes16 left(Lanes16 count) const {
    return {_mm256_sllv_epi32(low, count.low), _mm256_sllv_epi32(high, count.high)};
  }
  Lanes16 right(Lanes16 count) const {
    return {_mm256_srlv_epi32(low, count.low), _mm256_srlv_epi32(high, count.high)};
  }

  Lanes16 clamped(Lanes16 least, Lanes16 most) const {  // signed
    return {_mm256_min_epi32(_mm256_max_epi32(low, least.low), most.low),
            _mm256_min_epi32(_mm256_max_epi32(high, least.high), most.high)};
  }
  Lanes16 magnitude() const { return {_mm256_abs_epi32(low), _mm256_abs_epi32(high)}; }

  static Mask16 mask(__m256i low, __m256i high) {  // of lanes that are all ones or zero
    return {static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(low))) |
            static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(high))) << 8};
  }
  Mask16 zero_above(int count) const {  // lanes whose bits from `count` on are zero
    const __m256i zero = _mm256_setzero_si256();
    return mask(_mm256_cmpeq_epi32(_mm256_srli_epi32(low, count), zero),
                _mm256_cmpeq_epi32(_mm256_srli_epi32(high, count), zero));
  }
  Mask16 at_least(Lanes16 o) const {  // signed
    const Mask16 below = mask(_mm256_cmpgt_epi32(o.low, low), _mm256_cmpgt_epi32(o.high, high));
    return {below.bits ^ 0xffff};
  }
  static __m256i lanes_of(uint32_t set) {  // all ones in the lanes of a set of eight
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(set)), bit), bit);
  }
  Lanes16 where(Mask16 lanes, Lanes16 o) const {
    return {_mm256_blendv_epi8(low, o.low, lanes_of(lanes.bits)),
            _mm256_blendv_epi8(high, o.high, lanes_of(lanes.bits >> 8))};
  }

  // table[lane], for lanes below 16.
  Lanes16 of(Lanes16 table) const {
    const auto one = [&](__m256i index) {
      const __m256i from_low = _mm256_permutevar8x32_epi32(table.low, index);
      const __m256i from_high = _mm256_permutevar8x32_epi32(table.high, index);
      return _mm256_blendv_epi8(from_low, from_high, _mm256_cmpgt_epi32(index, _mm256_set1_epi32(7)));
    };
    return {one(low), one(high)};
  }
  int sum() const {
    const __m256i eight = _mm256_add_epi32(low, high);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
  }

  // Every lane the sum of the lanes up to it.
  Lanes16 running_sum() const {
    const auto eight = [](__m256i x) {
      x = _mm256_add_epi32(x, _mm256_slli_si256(x, 4));
      x = _mm256_add_epi32(x, _mm256_slli_si256(x, 8));
      const __m256i carry = _mm256_permute2x128_si256(x, x, 0x08);  // the lower half above zeros
      return _mm256_add_epi32(x, _mm256_shuffle_epi32(carry, 0xff));
    };
    const __m256i first = eight(low);
    const __m256i total = _mm256_permutevar8x32_epi32(first, _mm256_set1_epi32(7));
    return {first, _mm256_add_epi32(eight(high), total)};
  }
  int last() const { return _mm256_extract_epi32(high, 7); }

  // Floor of v / divisor, for quotients below 2^31 and divisors up to 2^12: the half keeps the rounded division
  // away from the next whole number.
  Lanes16 divided_by(Lanes16 divisor) const {
    const auto four = [](__m128i x, __m128i y) {
      const __m128i shifted = _mm_xor_si128(x, _mm_set1_epi32(static_cast<int>(0x80000000u)));  // minus 2^31
      const __m256d numerator = _mm256_add_pd(_mm256_cvtepi32_pd(shifted), _mm256_set1_pd(2147483648.5));
      return _mm256_cvttpd_epi32(_mm256_div_pd(numerator, _mm256_cvtepi32_pd(y)));
    };
    const auto eight = [&](__m256i x, __m256i y) {
      return _mm256_set_m128i(four(_mm256_extracti128_si256(x, 1), _mm256_extracti128_si256(y, 1)),
                              four(_mm256_castsi256_si128(x), _mm256_castsi256_si128(y)));
    };
    return {eight(low, divisor.low), eight(high, divisor.high)};
  }

  // The next 16-bit words, one for every lane of the set in the order of lanes; reads 32 bytes. Other lanes: any.
  static Lanes16 spread_words(const uint8_t* words, Mask16 lanes) {
    const auto eight = [](const uint8_t* from, uint32_t set) {
      const __m128i next = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      return _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(next), order(kLaneOrders.spread[set]));
    };
    const uint32_t first = lanes.bits & 0xff;
    return {eight(words, first), eight(words + 2 * __builtin_popcount(first), lanes.bits >> 8)};
  }
  // The inverse, backwards: the low words of the lanes of the set end before `words`; returns where they begin.
  uint8_t* push_words(uint8_t* words, Mask16 lanes) const {
    const auto eight = [](uint8_t* to, __m256i x, uint32_t set) {
      const __m256i packed = _mm256_permutevar8x32_epi32(x, order(kLaneOrders.pack[set]));
      const __m256i low_words = _mm256_shuffle_epi8(
          packed, _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 4, 5, 8, 9,
                                   12, 13, -1, -1, -1, -1, -1, -1, -1, -1));
      const __m128i eight_words = _mm256_castsi256_si128(_mm256_permute4x64_epi64(low_words, 0x08));
      const int count = __builtin_popcount(set);
      to -= 2 * count;
      alignas(16) uint8_t bytes[16];
      _mm_store_si128(reinterpret_cast<__m128i*>(bytes), eight_words);
      std::memcpy(to, bytes, 2 * count);
      return to;
    };
    words = eight(words, high, lanes.bits >> 8);
    return eight(words, low, lanes.bits & 0xff);
  }
};

}  // namespace graftwork::GRAFTWORK_LEVEL
