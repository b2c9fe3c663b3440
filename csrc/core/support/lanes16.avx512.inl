#pragma once

#include <immintrin.h>

namespace graftwork::GRAFTWORK_LEVEL {

// A set of lanes.
struct Mask16 {
  __mmask16 bits;

  int count() const { return __builtin_popcount(bits); }
  bool any() const { return bits != 0; }
};

struct Lanes16 {
  __m512i v;

  static Lanes16 all(uint32_t value) { return {_mm512_set1_epi32(static_cast<int>(value))}; }
  static Lanes16 load(const void* from) { return {_mm512_loadu_si512(from)}; }
  static Lanes16 load_bytes(const void* from) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)))};
  }
  static Lanes16 load_words(const void* from) {
    return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from)))};
  }
  // base[index], for indices below 2^31.
  static Lanes16 gather(const uint32_t* base, Lanes16 index) {
    return {_mm512_i32gather_epi32(index.v, base, 4)};
  }
  // At least 17 bits from bit `at` < 480 on, at least 32 from bit `at` < 992 on; they read 64 and 128 bytes. Two
  // permutations of what was loaded are several times cheaper than a gather.
  static Lanes16 short_bits(const uint8_t* bytes, Lanes16 at) {
    const Lanes16 word = at.right<4>();
    const Lanes16 pair = word | (word + all(1)).left<16>();
    return Lanes16{_mm512_permutexvar_epi16(pair.v, load(bytes).v)}.right(at & all(15));
  }
  static Lanes16 long_bits(const uint8_t* bytes, Lanes16 at) {
    const __m512i first = load(bytes).v, second = load(bytes + 64).v;
    const Lanes16 word = at.right<5>(), shift = at & all(31);
    const Lanes16 low{_mm512_permutex2var_epi32(first, word.v, second)};
    const Lanes16 high{_mm512_permutex2var_epi32(first, (word + all(1)).v, second)};
    return low.right(shift) | high.left(all(32) - shift);
  }

  void store(void* to) const { _mm512_storeu_si512(to, v); }
  void store_words(void* to) const {
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtepi32_epi16(v));
  }

  Lanes16 operator+(Lanes16 other) const { return {_mm512_add_epi32(v, other.v)}; }
  Lanes16 operator-(Lanes16 other) const { return {_mm512_sub_epi32(v, other.v)}; }
  Lanes16 operator*(Lanes16 other) const { return {_mm512_mullo_epi32(v, other.v)}; }
  Lanes16 operator&(Lanes16 other) const { return {_mm512_and_si512(v, other.v)}; }
  Lanes16 operator|(Lanes16 other) const { return {_mm512_or_si512(v, other.v)}; }
  Lanes16 operator^(Lanes16 other) const { return {_mm512_xor_si512(v, other.v)}; }
  template <int count>
  Lanes16 left() const {
    return {_mm512_slli_epi32(v, count)};
  }
  template <int count>
  Lanes16 right() const {
    return {_mm512_srli_epi32(v, count)};
  }
  template <int count>
  Lanes16 right_signed() const {
    return {_mm512_srai_epi32(v, count)};
  }
  // A count of 32 and more gives zero.
  Lanes16 left(Lanes16 count) const { return {_mm512_sllv_epi32(v, count.v)}; }
  Lanes16 right(Lanes16 count) const { return {_mm512_srlv_epi32(v, count.v)}; }

  Lanes16 clamped(Lanes16 low, Lanes16 high) const {  // signed
    return {_mm512_min_epi32(_mm512_max_epi32(v, low.v), high.v)};
  }
  Lanes16 magnitude() const { return {_mm512_abs_epi32(v)}; }
  Mask16 zero_above(int count) const {  // lanes whose bits from `count` on are zero
    return {_mm512_testn_epi32_mask(v, _mm512_set1_epi32(static_cast<int>(~uint32_t{0} << count)))};
  }
  Mask16 at_least(Lanes16 other) const { return {_mm512_cmpge_epi32_mask(v, other.v)}; }  // signed
  Lanes16 where(Mask16 lanes, Lanes16 other) const { return {_mm512_mask_mov_epi32(v, lanes.bits, other.v)}; }

  // table[lane], for lanes below 16.
  Lanes16 of(Lanes16 table) const { return {_mm512_permutexvar_epi32(v, table.v)}; }
  int sum() const { return _mm512_reduce_add_epi32(v); }

  // Every lane the sum of the lanes up to it.
  Lanes16 running_sum() const {
    const __m512i zero = _mm512_setzero_si512();
    __m512i sum = _mm512_add_epi32(v, _mm512_alignr_epi32(v, zero, 15));
    sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, zero, 14));
    sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, zero, 12));
    return {_mm512_add_epi32(sum, _mm512_alignr_epi32(sum, zero, 8))};
  }
  int last() const { return _mm_extract_epi32(_mm512_extracti32x4_epi32(v, 3), 3); }

  // Floor of v / divisor, for quotients below 2^31 and divisors up to 2^12: the half keeps the rounded division
  // away from the next whole number.
  Lanes16 divided_by(Lanes16 divisor) const {
    const auto half = [](__m256i x, __m256i y) {
      const __m512d numerator = _mm512_add_pd(_mm512_cvtepu32_pd(x), _mm512_set1_pd(0.5));
      return _mm512_cvttpd_epi32(_mm512_div_pd(numerator, _mm512_cvtepu32_pd(y)));
    };
    const __m256i low = half(_mm512_castsi512_si256(v), _mm512_castsi512_si256(divisor.v));
    const __m256i high = half(_mm512_extracti64x4_epi64(v, 1), _mm512_extracti64x4_epi64(divisor.v, 1));
    return {_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
  }

  // The next 16-bit words, one for every lane of the set in the order of lanes; reads 32 bytes.
  static Lanes16 spread_words(const uint8_t* words, Mask16 lanes) {
    return {_mm512_maskz_expand_epi32(lanes.bits, load_words(words).v)};
  }
  // The inverse, backwards: the low words of the lanes of the set end before `words`; returns where they begin.
  uint8_t* push_words(uint8_t* words, Mask16 lanes) const {
    words -= 2 * lanes.count();
    const __m256i packed = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(lanes.bits, v));
    _mm256_mask_storeu_epi16(words, static_cast<__mmask16>((1u << lanes.count()) - 1), packed);
    return words;
  }
};

}  // namespace graftwork::GRAFTWORK_LEVEL
