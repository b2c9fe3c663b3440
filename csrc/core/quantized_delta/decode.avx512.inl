// See decode.inl. Sixteen codes are broadcast, shifted, and look up their terms in a register: a permutation takes no more
// than the four lowest bits of a lane, so that narrower codes need no mask where the table repeats.
#pragma once

#include <immintrin.h>

#include "core/quantized_delta/weights.avx512.inl"

namespace graftwork::GRAFTWORK_LEVEL {

// Adds to 32 bfloat16; false, and nothing is written, if a sum is NaN.
inline bool add_to_pairs(const uint16_t* from, __m512 even_terms, __m512 odd_terms, uint16_t* to) {
  const __m512i words = _mm512_loadu_si512(from), top = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512 even = _mm512_add_ps(_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)), even_terms);
  const __m512 odd = _mm512_add_ps(_mm512_castsi512_ps(_mm512_and_si512(words, top)), odd_terms);
  if (_mm512_cmp_ps_mask(even, odd, _CMP_UNORD_Q) != 0) [[unlikely]]
    return false;
  const auto rounded = [](__m512 sum) {  // the nearest is in the upper half, ties to even
    const __m512i bits = _mm512_castps_si512(sum);
    const __m512i up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    const __mmask16 is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    return _mm512_mask_add_epi32(up, is_odd, up, _mm512_set1_epi32(1));
  };
  const __m512i low = _mm512_srli_epi32(rounded(even), 16);
  _mm512_storeu_si512(to, _mm512_ternarylogic_epi32(low, rounded(odd), top, 0xf8));  // low | odd & top
  return true;
}

// Sixteen codes in the lowest bits of as many lanes; what is above them is arbitrary but for three and eight bits.
template <int kBits>
inline __m512i spread_codes(const uint8_t* low, const uint8_t* high) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  if constexpr (kBits == 8) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low)));
  } else if constexpr (kBits == 4) {
    const __m512i first = _mm512_set1_epi32(word_at<int32_t>(low, 0));
    const __m512i both = _mm512_mask_set1_epi32(first, 0xff00, word_at<int32_t>(low, 1));
    return _mm512_srlv_epi32(both, _mm512_and_si512(_mm512_slli_epi32(lane, 2), _mm512_set1_epi32(28)));
  } else if constexpr (kBits == 2) {
    return _mm512_srlv_epi32(_mm512_set1_epi32(word_at<int32_t>(low, 0)), _mm512_slli_epi32(lane, 1));
  } else if constexpr (kBits == 1) {
    return _mm512_srlv_epi32(_mm512_set1_epi32(word_at<uint16_t>(low, 0)), lane);
  } else {
    const __m512i two = _mm512_and_si512(spread_codes<2>(low, nullptr), _mm512_set1_epi32(3));
    return _mm512_mask_or_epi32(two, word_at<uint16_t>(high, 0), two, _mm512_set1_epi32(4));
  }
}

// Thirty-two codes: those of the even elements and those of the odd ones.
struct CodePair {
  __m512i even, odd;
};

template <int kBits>
inline CodePair spread_pairs(const uint8_t* low, const uint8_t* high) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  if constexpr (kBits == 8) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
    const __m512i two = _mm512_cvtepu16_epi32(bytes);
    return {_mm512_and_si512(two, _mm512_set1_epi32(0xff)), _mm512_srli_epi32(two, 8)};
  } else if constexpr (kBits == 4) {
    const __m512i two = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low)));
    return {two, _mm512_srli_epi32(two, 4)};
  } else if constexpr (kBits == 2) {
    const __m512i first = _mm512_set1_epi32(word_at<int32_t>(low, 0));
    const __m512i both = _mm512_mask_set1_epi32(first, 0xff00, word_at<int32_t>(low, 1));
    const __m512i shift = _mm512_and_si512(_mm512_slli_epi32(lane, 2), _mm512_set1_epi32(28));
    const __m512i even = _mm512_srlv_epi32(both, shift);
    return {even, _mm512_srli_epi32(even, 2)};
  } else if constexpr (kBits == 1) {
    const __m512i even =
        _mm512_srlv_epi32(_mm512_set1_epi32(word_at<int32_t>(low, 0)), _mm512_slli_epi32(lane, 1));
    return {even, _mm512_srli_epi32(even, 1)};
  } else {
    const __m512i three = _mm512_set1_epi32(3), four = _mm512_set1_epi32(4);
    const CodePair two = spread_pairs<2>(low, nullptr);
    const __m512i even = _mm512_and_si512(two.even, three), odd = _mm512_and_si512(two.odd, three);
    const CodePair top = spread_pairs<1>(high, nullptr);
    const __m512i one = _mm512_set1_epi32(1);
    return {_mm512_mask_or_epi32(even, _mm512_test_epi32_mask(top.even, one), even, four),
            _mm512_mask_or_epi32(odd, _mm512_test_epi32_mask(top.odd, one), odd, four)};
  }
}

// The levels that a lane's four lowest bits stand for; without the zero of asym.
template <class Code>
inline __m512 level_table() {
  alignas(64) float table[16];
  for (int k = 0; k < 16; ++k) table[k] = Code::level(k & (Code::count - 1), 0);
  return _mm512_load_ps(table);
}

// The terms that the codes of a block stand for.
template <class Code>
struct BlockTerms {
  __m512 scales, offset, table;

  BlockTerms(__m512 levels, float scale, float zero) : scales(_mm512_set1_ps(scale)) {
    constexpr float kOffset = Code::scheme == Scheme::midrise ? Code::half - 0.5f : Code::half;
    const __m512 zeros = _mm512_set1_ps(zero);
    offset = Code::scheme == Scheme::asym ? zeros : _mm512_set1_ps(kOffset);
    table = _mm512_mul_ps(Code::scheme == Scheme::asym ? _mm512_sub_ps(levels, zeros) : levels, scales);
  }

  __m512 of(__m512i codes) const {
    if constexpr (Code::bits < 8) return _mm512_permutexvar_ps(codes, table);
    return _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(codes), offset), scales);
  }
};

// The bytes of a block's last codes, fewer than 16, followed by zeros.
template <class Code>
struct LastCodes {
  uint8_t low[16] = {}, high[2] = {};

  LastCodes(const uint8_t* low_bytes, const uint8_t* high_bytes, int count) {
    std::memcpy(low, low_bytes, (count * Planes<Code::bits>::low_bits + 7) / 8);
    if constexpr (Code::bits == 3) std::memcpy(high, high_bytes, (count + 7) / 8);
  }
};

template <class Code, bool kFirst>
void add_terms(const CodedPiece& piece) {
  constexpr int kLow = Planes<Code::bits>::low_bits;
  const __m512 levels = level_table<Code>();
  piece.for_each_block([&](int begin, int end, float scale, float zero) {
    const BlockTerms<Code> terms(levels, scale, zero);
    const uint8_t* low = piece.low + begin * kLow / 8;
    const uint8_t* high = piece.high + begin / 8;
    int i = begin;
    for (; i + 16 <= end; i += 16, low += 2 * kLow, high += 2) {
      const __m512 term = terms.of(spread_codes<Code::bits>(low, high));
      _mm512_storeu_ps(piece.sums + i, kFirst ? term : _mm512_add_ps(_mm512_loadu_ps(piece.sums + i), term));
    }
    if (i == end) return;
    const LastCodes<Code> last(low, high, end - i);
    const __mmask16 lanes = static_cast<__mmask16>((1u << (end - i)) - 1);
    const __m512 term = terms.of(spread_codes<Code::bits>(last.low, last.high));
    const __m512 before = kFirst ? term : _mm512_maskz_loadu_ps(lanes, piece.sums + i);
    _mm512_mask_storeu_ps(piece.sums + i, lanes, kFirst ? term : _mm512_add_ps(before, term));
  });
}

// out = the nearest of base + term, from words to words. Thirty-two bfloat16 are taken as pairs: each is half of a lane,
// so that neither way needs a permutation.
template <class Format, class Code>
void add_to_words(const CodedPiece& piece, const void* base, void* out) {
  using Word = typename Format::Word;
  constexpr int kLow = Planes<Code::bits>::low_bits;
  const Word* const from = static_cast<const Word*>(base);
  Word* const to = static_cast<Word*>(out);
  const __m512 levels = level_table<Code>();
  piece.for_each_block([&](int begin, int end, float scale, float zero) {
    const BlockTerms<Code> terms(levels, scale, zero);
    const uint8_t* low = piece.low + begin * kLow / 8;
    const uint8_t* high = piece.high + begin / 8;
    int i = begin;
    if constexpr (sizeof(Word) == 2 && Format::kExponentBits == 8) {
      for (; i + 32 <= end; i += 32, low += 4 * kLow, high += 4) {
        const CodePair codes = spread_pairs<Code::bits>(low, high);
        if (!add_to_pairs(from + i, terms.of(codes.even), terms.of(codes.odd), to + i)) break;
      }
    }
    for (; i + 16 <= end; i += 16, low += 2 * kLow, high += 2)
      store_weights<Format>(to + i, _mm512_add_ps(load_weights<Format>(from + i),
                                                  terms.of(spread_codes<Code::bits>(low, high))));
    if (i == end) return;
    const LastCodes<Code> last(low, high, end - i);
    const __mmask16 lanes = static_cast<__mmask16>((1u << (end - i)) - 1);
    const __m512 term = terms.of(spread_codes<Code::bits>(last.low, last.high));
    store_some_weights<Format>(to + i, lanes,
                               _mm512_add_ps(load_some_weights<Format>(from + i, lanes), term));
  });
}

}  // namespace graftwork::GRAFTWORK_LEVEL
