// The loops of ordinal_planes.h. A block's differences and their bytes by plane stay in the L1 cache:
// splitting them is a transposition with constant strides, which the compiler vectorises as byte shuffles at
// every level.
#pragma once

#include <cstring>

#include "core/support/numeric.h"
#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kPlaneBlock = 512;  // elements

template <class Word, bool is_float>
inline Word position(Word word) {
  return is_float ? ordinal(word) : word;
}

template <class Word, bool is_float>
inline Word word_at(Word position) {
  return is_float ? from_ordinal(position) : position;
}

template <class Word, bool is_float>
void encode_block(const Word* __restrict base, const Word* __restrict tuned, uint8_t* __restrict planes,
                  int64_t stride, int count) {
  constexpr int kBytes = sizeof(Word);
  Word codes[kPlaneBlock];
  uint8_t split[kBytes][kPlaneBlock];
  for (int i = 0; i < count; ++i)
    codes[i] = zigzag<Word>(position<Word, is_float>(tuned[i]) - position<Word, is_float>(base[i]));
  const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(codes);
  for (int i = 0; i < count; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kBytes; ++j) split[j][i] = bytes[kBytes * i + j];
  for (int j = 0; j < kBytes; ++j) std::memcpy(planes + j * stride, split[j], count);
}

template <class Word, bool is_float>
void decode_block(const Word* __restrict base, const uint8_t* __restrict planes, Word* __restrict tuned,
                  int64_t stride, int count, Word sign) {
  constexpr int kBytes = sizeof(Word);
  Word codes[kPlaneBlock];
  uint8_t split[kBytes][kPlaneBlock];
  for (int j = 0; j < kBytes; ++j) std::memcpy(split[j], planes + j * stride, count);
  uint8_t* const bytes = reinterpret_cast<uint8_t*>(codes);
  for (int i = 0; i < count; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kBytes; ++j) bytes[kBytes * i + j] = split[j][i];
  for (int i = 0; i < count; ++i)
    tuned[i] = word_at<Word, is_float>(
        static_cast<Word>(position<Word, is_float>(base[i]) + ((from_zigzag(codes[i]) ^ sign) - sign)));
}

template <class Block>
void for_each_block(int64_t numel, int threads, const Block& block) {
  const Chunks chunks = cut(numel);
  parallel_chunks(chunks, threads, [&](int chunk) {
    const int64_t end = chunks.end(chunk);
    for (int64_t i = chunks.begin(chunk); i < end; i += kPlaneBlock)
      block(i, static_cast<int>(end - i < kPlaneBlock ? end - i : kPlaneBlock));
  });
}

template <class Word, bool is_float>
void encode_words(const void* base, const void* tuned, uint8_t* planes, int64_t numel, int threads) {
  const Word* const from = static_cast<const Word*>(base);
  const Word* const to = static_cast<const Word*>(tuned);
  for_each_block(numel, threads, [=](int64_t i, int count) {
    encode_block<Word, is_float>(from + i, to + i, planes + i, numel, count);
  });
}

template <class Word, bool is_float>
void decode_words(const void* base, const uint8_t* planes, void* tuned, int64_t numel, bool reverse,
                  int threads) {
  const Word* const from = static_cast<const Word*>(base);
  Word* const to = static_cast<Word*>(tuned);
  const Word sign = static_cast<Word>(reverse ? ~Word{0} : Word{0});  // (d ^ sign) - sign is d or -d
  for_each_block(numel, threads, [=](int64_t i, int count) {
    decode_block<Word, is_float>(from + i, planes + i, to + i, numel, count, sign);
  });
}

}  // namespace graftwork::GRAFTWORK_LEVEL
