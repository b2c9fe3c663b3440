// Codes, a byte each, to and from a few bits each. Words are little-endian, as on every machine this runs on: shifting a
// word of several codes and keeping its lowest byte gathers them, and such loops vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace graftwork::GRAFTWORK_LEVEL {

// Where the codes of a row are: bytes of the low plane and, for three bits, of the high one.
template <int kBits>
struct Planes {
  static constexpr int low_bits = kBits == 3 ? 2 : kBits;
  int64_t low_bytes;  // of a row

  explicit Planes(int64_t columns) : low_bytes((columns * low_bits + 7) / 8) {}

  // The bytes at a column that is a multiple of 8.
  uint8_t* low(uint8_t* row, int64_t column) const { return row + column * low_bits / 8; }
  uint8_t* high(uint8_t* row, int64_t column) const { return row + low_bytes + column / 8; }
  const uint8_t* low(const uint8_t* row, int64_t column) const { return row + column * low_bits / 8; }
  const uint8_t* high(const uint8_t* row, int64_t column) const { return row + low_bytes + column / 8; }
};

template <class Word>
inline Word word_at(const uint8_t* bytes, int index) {
  Word word;
  std::memcpy(&word, bytes + sizeof(Word) * index, sizeof word);
  return word;
}

template <class Word>
inline void put_word(uint8_t* bytes, int index, Word word) {
  std::memcpy(bytes + sizeof(Word) * index, &word, sizeof word);
}

// The width's lowest bits, from bit kFrom on, of count codes; the codes up to the next multiple of 8 are read, zeros.
template <int kWidth, int kFrom>
inline void pack_plane(const uint8_t* __restrict codes, int count, uint8_t* __restrict bytes) {
  const int nbytes = (count * kWidth + 7) / 8;
  if constexpr (kWidth == 8) {
    std::memcpy(bytes, codes, count);
  } else if constexpr (kWidth == 4) {
    for (int i = 0; i < nbytes; ++i) {
      const uint16_t w = word_at<uint16_t>(codes, i) & 0x0f0f;
      bytes[i] = static_cast<uint8_t>(w | w >> 4);
    }
  } else if constexpr (kWidth == 2) {
    for (int i = 0; i < nbytes; ++i) {
      const uint32_t w = word_at<uint32_t>(codes, i) & 0x03030303u;
      bytes[i] = static_cast<uint8_t>(w | w >> 6 | w >> 12 | w >> 18);
    }
  } else {
    for (int i = 0; i < nbytes; ++i) {
      const uint64_t w = word_at<uint64_t>(codes, i) >> kFrom & 0x0101010101010101u;
      bytes[i] = static_cast<uint8_t>(w * 0x0102040810204080u >> 56);  // bit 8j to bit 56 + j
    }
  }
}

// The inverse of all bytes that count codes touch, ORed in from bit kTo on if that is not 0.
template <int kWidth, int kTo>
inline void unpack_plane(const uint8_t* __restrict bytes, int count, uint8_t* __restrict codes) {
  const int nbytes = (count * kWidth + 7) / 8;
  if constexpr (kWidth == 8) {
    std::memcpy(codes, bytes, count);
  } else if constexpr (kWidth == 4) {
    for (int i = 0; i < nbytes; ++i) {
      const uint16_t b = bytes[i];
      put_word<uint16_t>(codes, i, static_cast<uint16_t>((b | b << 4) & 0x0f0f));
    }
  } else if constexpr (kWidth == 2) {
    for (int i = 0; i < nbytes; ++i) {
      const uint32_t b = bytes[i];
      put_word<uint32_t>(codes, i, (b | b << 6 | b << 12 | b << 18) & 0x03030303u);
    }
  } else {
    for (int i = 0; i < nbytes; ++i) {
      const uint64_t one_each = bytes[i] * 0x0101010101010101u & 0x8040201008040201u;  // bit j in byte j
      uint64_t w = (one_each + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
      if constexpr (kTo != 0) w = w << kTo | word_at<uint64_t>(codes, i);
      put_word<uint64_t>(codes, i, w);
    }
  }
}

template <int kBits>
inline void pack_codes(const uint8_t* codes, int count, uint8_t* low, uint8_t* high) {
  pack_plane<Planes<kBits>::low_bits, 0>(codes, count, low);
  if constexpr (kBits == 3) pack_plane<1, 2>(codes, count, high);
}

// Writes the codes up to the next multiple of 8.
template <int kBits>
inline void unpack_codes(const uint8_t* low, const uint8_t* high, int count, uint8_t* codes) {
  unpack_plane<Planes<kBits>::low_bits, 0>(low, count, codes);
  if constexpr (kBits == 3) unpack_plane<1, 2>(high, count, codes);
}

}  // namespace graftwork::GRAFTWORK_LEVEL
