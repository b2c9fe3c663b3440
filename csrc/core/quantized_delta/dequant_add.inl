// The loops of dequant_add.h. A tile's sums stay in the L1 cache from the base's words to the result's; a large result is
// written past the caches. Bound by memory.
#pragma once

#include "core/quantized_delta/decode.inl"
#include "core/sparse_update/tile.inl"
#include "core/support/stream.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kTileBlocks = kTile / 8 + 1;  // that a tile has a part of

struct Pack {
  const uint8_t* codes;
  int64_t row_bytes;
  const void* scales;
  WeightFormat scale_format;
  const uint8_t* zeros;
  const float* factors;
  bool factor_for_each_row;
  int bits;
  int64_t block;
  float power;  // of two, that the scales are multiplied by
  void (*add)(const CodedPiece&);
  void (*put)(const CodedPiece&);
#if defined(GRAFTWORK_LEVEL_IS_avx512)
  void (*add_words[3])(const CodedPiece&, const void* base, void* out);  // by format
#endif

  explicit Pack(const int64_t* numbers)
      : codes(reinterpret_cast<const uint8_t*>(numbers[0])),
        row_bytes(numbers[1]),
        scales(reinterpret_cast<const void*>(numbers[2])),
        scale_format(static_cast<WeightFormat>(numbers[3])),
        zeros(reinterpret_cast<const uint8_t*>(numbers[4])),
        factors(reinterpret_cast<const float*>(numbers[5])),
        factor_for_each_row(numbers[6] != 0),
        bits(static_cast<int>(numbers[7])),
        block(numbers[9]),
        power(bit_cast<float>(static_cast<uint32_t>(127 + numbers[10]) << 23)) {
    with_code(static_cast<Scheme>(numbers[8]), bits, [this]<class Code>() {
      add = add_terms<Code, false>;
      put = add_terms<Code, true>;
#if defined(GRAFTWORK_LEVEL_IS_avx512)
      add_words[0] = add_to_words<Float16, Code>;
      add_words[1] = add_to_words<BFloat16, Code>;
      add_words[2] = add_to_words<Float32, Code>;
#endif
    });
  }

  float factor(int64_t row) const { return factors[factor_for_each_row ? row : 0]; }

  // The number of the first block of a row among all scales, and blocks of a row.
  int64_t blocks(int64_t columns) const { return block > 0 ? (columns + block - 1) / block : 1; }
  int64_t first_block(int64_t row, int64_t columns) const { return block < 0 ? 0 : row * blocks(columns); }

  // Calls body with the piece that a tile of a row is.
  template <class Body>
  void with_piece(int64_t row, int64_t columns, int64_t column, int count, float* sums,
                  const Body& body) const {
    const int64_t length = block > 0 ? block : columns, skipped = column / length;
    const int64_t at = first_block(row, columns) + skipped;
    const int parts = static_cast<int>((column + count - 1) / length - skipped) + 1;
    float scaled[kTileBlocks];
    with_format(scale_format, [&]<class Format>() {
      values_of<Format>(static_cast<const typename Format::Word*>(scales) + at, parts, scaled);
    });
    const float mine = factor(row);
    for (int i = 0; i < parts; ++i) scaled[i] = mine * (scaled[i] * power);
    const uint8_t* const low = codes + row * row_bytes;
    const int64_t low_bits = bits == 3 ? 2 : bits;
    body(CodedPiece{sums, count, low + column * low_bits / 8, low + (columns * low_bits + 7) / 8 + column / 8,
                    scaled, zeros == nullptr ? nullptr : zeros + at, length, column - skipped * length});
  }
};

// The packs of a matrix.
struct Packs {
  const int64_t* table;
  int count;
  int64_t columns;

  Pack operator[](int number) const { return Pack(table + kPackNumbers * number); }
  // How many have a factor other than 0 for a row, and the first that has.
  struct Active {
    int count, first;
  };
  Active active(int64_t row) const {
    Active found{0, 0};
    for (int k = count - 1; k >= 0; --k)
      if ((*this)[k].factor(row) != 0) found = {found.count + 1, k};
    return found;
  }
};

// A tile of a row of the result, by way of sums in float.
template <class From, class To>
void add_tile(const Packs& packs, int64_t row, int64_t column, int count, const typename From::Word* base,
              typename To::Word* out) {
  float sums[kTile];
  bool first = base == nullptr;
  if (!first) values_of<From>(base, count, sums);
  for (int k = 0; k < packs.count; ++k) {
    const Pack pack = packs[k];
    if (pack.factor(row) == 0) continue;
    pack.with_piece(row, packs.columns, column, count, sums, first ? pack.put : pack.add);
    first = false;
  }
  if (first) std::memset(sums, 0, count * sizeof(float));
  words_of<To>(sums, count, out);
}

template <class Format>
constexpr int kFormatNumber = sizeof(typename Format::Word) == 4 ? 2
                              : Format::kExponentBits == 8       ? 1
                                                                 : 0;

template <class From, class To>
void dequant_add_of(typename To::Word* out, const typename From::Word* base, int64_t rows, int64_t columns,
                    const int64_t* table, int count, int threads) {
  constexpr bool kSame = kFormatNumber<From> == kFormatNumber<To>;
  const bool in_place = static_cast<const void*>(base) == out;
  const bool streamed =
      !in_place && rows * columns * static_cast<int64_t>(sizeof(typename To::Word)) >= kStreamedBytes;
  const Packs packs{table, count, columns};
  const Chunks chunks = cut_rows(rows, columns);
  parallel_chunks(chunks, threads, [=](int chunk) {
    for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      const Packs::Active active = packs.active(row);
      const typename From::Word* const from = base == nullptr ? nullptr : base + row * columns;
      typename To::Word* const to = out + row * columns;
      if (kSame && base != nullptr && active.count == 0) {
        if (!in_place) std::memcpy(to, from, columns * sizeof *to);
        continue;
      }
      for_each_tile(columns, [=](int64_t column, int length) {
        typename To::Word room[kTile];
        typename To::Word* const words = streamed ? room : to + column;
        const auto* const here = from == nullptr ? nullptr : from + column;
#if defined(GRAFTWORK_LEVEL_IS_avx512)
        if (kSame && base != nullptr && active.count == 1) {
          const Pack pack = packs[active.first];
          pack.with_piece(row, columns, column, length, nullptr, [&](const CodedPiece& piece) {
            pack.add_words[kFormatNumber<To>](piece, here, words);
          });
        } else
#endif
          add_tile<From, To>(packs, row, column, length, here, words);
        if (streamed) stream_bytes(to + column, words, length * sizeof *to);
      });
    }
    if (streamed) finish_streams();
  });
}

}  // namespace graftwork::GRAFTWORK_LEVEL
