// Words of a base and of its fine-tune, drawn or taken from the input.
#pragma once

#include <cstdint>
#include <cstring>
#include <iterator>

#include "target.h"

namespace fuzz {

// Fills `bytes` with words of one of four kinds: weights of a few exponents, any bits, zeros, or the patterns that
// break codecs (zeros of both signs, infinities, NaN, subnormals).
template <class Word>
void draw_base(uint8_t* bytes, int64_t count, int kind, int exponent_bits, Random& random) {
  constexpr int kBits = 8 * static_cast<int>(sizeof(Word));
  const int mantissa_bits = kBits - 1 - exponent_bits;
  const Word exponents = static_cast<Word>(((Word{1} << exponent_bits) - 1) << mantissa_bits);
  const Word special[] = {0,         static_cast<Word>(Word{1} << (kBits - 1)),
                          exponents, static_cast<Word>(exponents | 1),
                          1,         static_cast<Word>(~Word{0})};
  const Word center = static_cast<Word>(random.next()) & exponents;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t any = random.next();
    Word word = static_cast<Word>(any);
    const Word nearby = static_cast<Word>(center - (static_cast<Word>(any >> 61) << mantissa_bits));
    if (kind == 0) word = static_cast<Word>((word & ~exponents) | (nearby & exponents));
    if (kind == 2) word = 0;
    if (kind == 3) word = special[any % std::size(special)];
    std::memcpy(bytes + i * sizeof(Word), &word, sizeof(Word));
  }
}

// Fills `bytes` with the words of `base` after one of five kinds of update: none, a few steps of one, small ones
// everywhere, small ones in bursts, or any bits.
template <class Word>
void draw_tuned(uint8_t* bytes, const uint8_t* base, int64_t count, int kind, Random& random) {
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t any = random.next();
    Word word;
    std::memcpy(&word, base + i * sizeof(Word), sizeof(Word));
    const Word small = static_cast<Word>((any >> 32 & 0xff) >> (any >> 40 & 7));
    if (kind == 1 && any % 64 == 0) word = static_cast<Word>(any >> 63 ? word + 1 : word - 1);
    if (kind == 2 || (kind == 3 && (i >> 6 & 3) == 0))
      word = static_cast<Word>(any >> 63 ? word + small : word - small);
    if (kind == 4) word = static_cast<Word>(any);
    std::memcpy(bytes + i * sizeof(Word), &word, sizeof(Word));
  }
}

}  // namespace fuzz
