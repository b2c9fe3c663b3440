// See encode.inl. Sixteen differences at a time, from the L1 cache to packed bytes.
#pragma once

#include <immintrin.h>

namespace graftwork::GRAFTWORK_LEVEL {

// Sixteen codes in the lowest bits of as many lanes, and their levels.
struct Coded {
  __m512i codes;
  __m512 levels;
};

// The level nearest to x by a table: [-1, 1] is cut into 31 cells, narrower than what lies between two middles, so that
// in each of them one comparison decides between two levels.
struct Nf4Cells {
  alignas(64) float middles[32];
  alignas(64) int32_t codes[32];
  static constexpr float kCells = 15.25f;  // for each unit of x; a cell is around a whole number

  constexpr Nf4Cells() : middles(), codes() {
    for (int cell = -15; cell <= 15; ++cell) {
      int below = 0;  // the middles that every number of the cell is above
      while (below < 15 && nf4_middle(below) * kCells < static_cast<float>(cell) - 0.501f) ++below;
      middles[cell & 31] = below < 15 ? nf4_middle(below) : 2.0f;
      codes[cell & 31] = below;
    }
  }
};
constexpr Nf4Cells kNf4Cells{};

// x in [-bound, bound]: the smaller magnitude, with the sign of x.
inline __m512 bounded(__m512 x, float bound) { return _mm512_range_ps(x, _mm512_set1_ps(bound), 0b0010); }

inline Coded nf4_coded(__m512 x) {
  x = bounded(x, 1.0f);
  const __m512i cell = _mm512_castps_si512(
      _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(Nf4Cells::kCells)), _mm512_set1_ps(kRounder)));
  const __m512 middle =
      _mm512_permutex2var_ps(_mm512_load_ps(kNf4Cells.middles), cell, _mm512_load_ps(kNf4Cells.middles + 16));
  const __m512i below = _mm512_permutex2var_epi32(_mm512_load_si512(kNf4Cells.codes), cell,
                                                  _mm512_load_si512(kNf4Cells.codes + 16));
  const __mmask16 above = _mm512_cmp_ps_mask(x, middle, _CMP_GT_OQ);
  const __m512i codes = _mm512_mask_add_epi32(below, above, below, _mm512_set1_epi32(1));
  return {codes, _mm512_permutexvar_ps(codes, _mm512_loadu_ps(kNf4Levels))};
}

// Of differences in units of their scale. A number below 2^22 that kRounder is added to has its nearest whole number in
// its lowest bits.
template <class Code>
inline Coded coded(__m512 x, __m512 zero) {
  const __m512 rounder = _mm512_set1_ps(kRounder);
  if constexpr (Code::scheme == Scheme::nf4) {
    return nf4_coded(x);
  } else if constexpr (Code::scheme == Scheme::midrise) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-Code::half)), _mm512_set1_ps(Code::half - 1));
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const __m512 shifted = _mm512_add_ps(whole, _mm512_set1_ps(kRounder + Code::half));
    return {_mm512_castps_si512(shifted), _mm512_add_ps(whole, _mm512_set1_ps(0.5f))};
  } else if constexpr (Code::scheme == Scheme::sym) {
    x = bounded(x, Code::half - 1);
    const __m512 shift = _mm512_set1_ps(kRounder + Code::half);  // even: ties fall as without it
    const __m512 shifted = _mm512_add_ps(x, shift);
    return {_mm512_castps_si512(shifted), _mm512_sub_ps(shifted, shift)};
  } else {
    const __m512 top = _mm512_sub_ps(_mm512_set1_ps(Code::count - 1), zero);
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), zero)), top);
    const __m512 shifted = _mm512_add_ps(x, rounder);
    return {_mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_cvtps_epi32(zero)),
            _mm512_sub_ps(shifted, rounder)};
  }
}

// The lowest kBits of sixteen lanes as bytes.
template <int kBits>
inline void put_codes(__m512i codes, uint8_t* low, uint8_t* high) {
  if constexpr (kBits == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(codes));
  } else if constexpr (
      kBits == 4) {  // the two lanes of a quadword into its lowest byte; bits 4 to 7 of a lane are zero
    const __m512i other = _mm512_srli_epi64(codes, 28);
    const __m512i pairs =
        _mm512_ternarylogic_epi64(codes, other, _mm512_set1_epi64(0xf0), 0xf8);  // a | b & c
    _mm_storel_epi64(reinterpret_cast<__m128i*>(low), _mm512_cvtepi64_epi8(pairs));
  } else if constexpr (kBits == 1) {
    put_word<uint16_t>(low, 0, _mm512_test_epi32_mask(codes, _mm512_set1_epi32(1)));
  } else {
    const __m128i bytes = _mm_and_si128(_mm512_cvtepi32_epi8(codes), _mm_set1_epi8(3));
    const __m128i pairs = _mm_maddubs_epi16(bytes, _mm_set1_epi16(0x0401));  // first + 4 * second
    const __m128i fours = _mm_madd_epi16(pairs, _mm_set1_epi32(0x00100001));
    put_word<int32_t>(low, 0, _mm_cvtsi128_si32(_mm_cvtepi32_epi8(fours)));
    if constexpr (kBits == 3)
      put_word<uint16_t>(high, 0, _mm512_test_epi32_mask(codes, _mm512_set1_epi32(4)));
  }
}

// Sixty-four codes of four bits. Bits 4 to 15 of a lane are zero.
inline void put_nibbles(__m512i first, __m512i second, __m512i third, __m512i fourth, uint8_t* bytes) {
  alignas(64) static constexpr uint16_t kLowWords[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                         22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42,
                                                         44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  const __m512i low_words = _mm512_load_si512(kLowWords), weights = _mm512_set1_epi32(0x00100001);
  const __m512i one = _mm512_permutex2var_epi16(first, low_words, second);
  const __m512i other = _mm512_permutex2var_epi16(third, low_words, fourth);
  // Of two neighbours the first, and 16 times the second.
  const __m128i one_bytes = _mm512_cvtepi32_epi8(_mm512_madd_epi16(one, weights));
  const __m128i other_bytes = _mm512_cvtepi32_epi8(_mm512_madd_epi16(other, weights));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), one_bytes);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + 16), other_bytes);
}

// Codes of a block; adds the squares of its errors.
template <class Code, bool kDivide>
inline void encode_one(const float* delta, int count, float scale, float one_over, float zero, uint8_t* low,
                       uint8_t* high, __m512& squares) {
  constexpr int kLow = Planes<Code::bits>::low_bits;
  const __m512 scales = _mm512_set1_ps(scale), zeros = _mm512_set1_ps(zero);
  const __m512 inverse = _mm512_set1_ps(one_over);
  const auto code = [&](__m512 difference, __mmask16 lanes) {
    const __m512 x = kDivide ? _mm512_div_ps(difference, scales) : _mm512_mul_ps(difference, inverse);
    const Coded found = coded<Code>(x, zeros);
    const __m512 error = _mm512_sub_ps(difference, _mm512_mul_ps(found.levels, scales));
    squares = _mm512_mask_add_ps(squares, lanes, squares, _mm512_mul_ps(error, error));
    return found.codes;
  };
  int i = 0;
  if constexpr (Code::bits == 4) {
    for (; i + 64 <= count; i += 64, low += 32) {
      __m512i codes[4];
      for (int k = 0; k < 4; ++k) codes[k] = code(_mm512_loadu_ps(delta + i + 16 * k), 0xffff);
      put_nibbles(codes[0], codes[1], codes[2], codes[3], low);
    }
  }
  for (; i + 16 <= count; i += 16, low += 2 * kLow, high += 2)
    put_codes<Code::bits>(code(_mm512_loadu_ps(delta + i), 0xffff), low, high);
  if (i == count) return;
  uint8_t last_low[16], last_high[2];
  const __mmask16 lanes = static_cast<__mmask16>((1u << (count - i)) - 1);
  const __m512i codes = code(_mm512_maskz_loadu_ps(lanes, delta + i), lanes);
  put_codes<Code::bits>(_mm512_maskz_mov_epi32(lanes, codes), last_low, last_high);
  std::memcpy(low, last_low, ((count - i) * kLow + 7) / 8);
  if constexpr (Code::bits == 3) std::memcpy(high, last_high, (count - i + 7) / 8);
}

// Signs of a block are a comparison; errors are |difference| - scale.
inline void encode_signs(const float* delta, int count, float scale, uint8_t* low, __m512& squares) {
  const __m512 scales = _mm512_set1_ps(scale);
  const auto code = [&](__m512 difference, __mmask16 lanes) {
    const __m512 error = _mm512_sub_ps(_mm512_abs_ps(difference), scales);
    squares = _mm512_mask_add_ps(squares, lanes, squares, _mm512_mul_ps(error, error));
    return _mm512_cmp_ps_mask(difference, _mm512_setzero_ps(), _CMP_GT_OQ);
  };
  int i = 0;
  for (; i + 16 <= count; i += 16, low += 2)
    put_word<uint16_t>(low, 0, code(_mm512_loadu_ps(delta + i), 0xffff));
  if (i == count) return;
  const __mmask16 lanes = static_cast<__mmask16>((1u << (count - i)) - 1);
  const uint16_t last = code(_mm512_maskz_loadu_ps(lanes, delta + i), lanes);
  std::memcpy(low, &last, (count - i + 7) / 8);
}

template <class Code>
void encode(const Differences& blocks, uint8_t* low, uint8_t* high, LaneSums<1>& errors) {
  float inverses[kTile / 8];
  const bool divided = blocks.invert_scales(inverses);
  __m512 squares = _mm512_setzero_ps();
  blocks.for_each_block([&](int number, int begin, int end, float scale, float zero) {
    uint8_t* const mine = low + begin * Planes<Code::bits>::low_bits / 8;
    uint8_t* const top = high + begin / 8;
    const float* const delta = blocks.delta + begin;
    if constexpr (Code::scheme == Scheme::sign)
      encode_signs(delta, end - begin, scale, mine, squares);
    else if (divided && needs_division(scale)) [[unlikely]]
      encode_one<Code, true>(delta, end - begin, scale, inverses[number], zero, mine, top, squares);
    else
      encode_one<Code, false>(delta, end - begin, scale, inverses[number], zero, mine, top, squares);
  });
  float lanes[kLanes];
  _mm512_storeu_ps(lanes, squares);
  for (int lane = 0; lane < kLanes; ++lane) errors.lanes[0][lane] += lanes[lane];
}

}  // namespace graftwork::GRAFTWORK_LEVEL
