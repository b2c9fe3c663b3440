// The loops of delta_linear.h. A tile is 64 rows of a matrix of codes; 64 bytes of each row at a time are transposed, so
// that the lanes of a vector are rows. Four bits of 16 rows then look up 16 sums at once in a table of the 16 sums that
// four columns of x (codes of 1 bit) or two (2 bits) can give; a token's tables are made once, for all rows. Codes of 4
// bits look their values up, wider ones are converted; both are multiplied.
//
// The order of a sum is fixed, whatever else is in the batch: unit by unit within the columns that share a scale and 64
// bytes, then these sums times their scales.
#pragma once

#include <cstdint>

#include "core/quantized_delta/delta_linear_blocks.inl"
#include "core/quantized_delta/delta_linear_lanes.inl"
#include "core/quantized_delta/delta_linear_tokens.inl"
#include "core/quantized_delta/delta_linear_values.inl"

namespace graftwork::GRAFTWORK_LEVEL {

using Sums = float[kTileRows];

// sums[t][r] = the sum of what the tables of token t give for the digits begin .. end - 1 of the rows r < 16 * kVectors,
// counted from the first word on; begin is even. A byte has two digits: words are read from each of their bytes on, and
// three bytes behind the last.
template <int kTokens, int kVectors>
inline void look_up_rows(const uint32_t* words, int begin, int end, const float* const* tables, Sums* sums) {
  FloatLanes acc[kTokens][kVectors];
  for (auto& line : acc)
    for (auto& sum : line) sum = FloatLanes::all(0);
  while (begin < end) {
    const int word = begin / kDigits, first = begin % kDigits, last = end - word * kDigits;
    WordLanes index[kVectors];
    const auto add = [&](int digit) {
      for (int t = 0; t < kTokens; ++t) {
        const FloatLanes table = FloatLanes::load(tables[t] + (word * kDigits + digit) * kEntries);
        for (int v = 0; v < kVectors; ++v) acc[t][v] = acc[t][v] + FloatLanes::look_up(index[v], table);
      }
    };
    const auto add_byte = [&](int digit, bool both) {
      for (int v = 0; v < kVectors; ++v)
        index[v] = WordLanes::load(words + word * kTileRows + kLanes * v, digit / 2);
      add(digit);
      if (!both) return;
      for (auto& lanes : index) lanes = next_digit(lanes);
      add(digit + 1);
    };
    if (first == 0 && last >= kDigits)  // a number of digits that is known makes straight code of it
      for (int digit = 0; digit < kDigits; digit += 2) add_byte(digit, true);
    else
      for (int digit = first; digit < last && digit < kDigits; digit += 2) add_byte(digit, digit + 1 < last);
    begin = (word + 1) * kDigits;
  }
  for (int t = 0; t < kTokens; ++t)
    for (int v = 0; v < kVectors; ++v) acc[t][v].store(sums[t] + kLanes * v);
}

// sums[t][r] = the sum over the codes of `count` words of the rows r < 16 * kVectors of their values times x[t].
template <int kBits, int kTokens, int kVectors>
inline void multiply_rows(const uint32_t* words, int count, const float* values, const float* const* x,
                          Sums* sums) {
  constexpr int kCodes = 32 / kBits;
  const FloatLanes table = load_values<kBits>(values);
  FloatLanes acc[kTokens][kVectors];
  for (auto& line : acc)
    for (auto& sum : line) sum = FloatLanes::all(0);
  for (int w = 0; w < count; ++w) {
    WordLanes index[kVectors];
    for (int code = 0; code < kCodes; ++code) {
      FloatLanes value[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const uint32_t* const from = words + w * kTileRows + kLanes * v;
        index[v] = code * kBits % 8 ? next_digit(index[v]) : WordLanes::load(from, code * kBits / 8);
        value[v] = value_of<kBits>(index[v], table);
      }
      for (int t = 0; t < kTokens; ++t) {
        const FloatLanes factor = FloatLanes::all(x[t][w * kCodes + code]);
        for (int v = 0; v < kVectors; ++v) acc[t][v] = value[v].multiply_add(factor, acc[t][v]);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int v = 0; v < kVectors; ++v) acc[t][v].store(sums[t] + kLanes * v);
}

// The rows row .. row + row_count - 1 of a product's matrix, with all of its tokens.
class DeltaTile {
 public:
  DeltaTile(const DeltaProduct& product, const TokenLayout& layout, const Planes& planes,
            const float* prepared, int64_t row, int64_t row_count)
      : matrix_(product.matrix), layout_(layout), prepared_(prepared), tokens_(product.token_count) {
    groups_ = row_pointers(matrix_.codes, row, row_count, matrix_.row_bytes, rows_);
    another_follows_ = row + 2 * kTileRows <= matrix_.rows;
    scale_format_ = static_cast<WeightFormat>(matrix_.scale_format);
    scales_.begin(matrix_.scales, row, row_count, matrix_.scale_stride,
                  scale_format_ == WeightFormat::float32 ? 4 : 2);
    if (matrix_.zeros) zeros_.begin(matrix_.zeros, row, row_count, matrix_.scale_stride, 1);
    for (int64_t t = 0; t < tokens_; ++t)
      for (float& total : totals_[t]) total = 0;
    for (int p = 0; p < planes.count; ++p)
      with_bits(planes.plane[p].bits, [&]<int kBits>() { add_plane<kBits>(planes.plane[p], p); });
  }

  const float* totals(int64_t token) const { return totals_[token]; }

 private:
  // Adds a plane, 64 bytes of the rows at a time.
  template <int kBits>
  void add_plane(const Plane& plane, int number) {
    constexpr Units units = Units::of(kBits);
    const int64_t count = divide_up(layout_.columns, units.columns);
    const int64_t length = matrix_.block ? matrix_.block / units.columns : count;
    int64_t block = 0, block_end = length;
    for (int64_t piece = 0; piece < count; piece += kPieceWords * units.a_word) {
      uint32_t words[kPieceWords + 1][kTileRows];
      load<kBits>(plane, piece / units.a_word, words[0]);
      const int64_t limit = piece + kPieceWords * units.a_word, end = limit < count ? limit : count;
      for (int64_t unit = piece; unit < end;) {
        const int64_t stop = block_end < end ? block_end : end;
        add_units<kBits>(plane, number, words[(unit - piece) / units.a_word], unit, stop, block);
        unit = stop;
        if (stop < block_end) break;  // the block goes on in the next piece
        ++block;
        block_end += length;
      }
    }
  }

  template <int kBits>
  void load(const Plane& plane, int64_t word, uint32_t* words) const {
    const int64_t offset = plane.byte + 4 * word;
    const int64_t bytes = divide_up(layout_.columns * kBits, 8) - 4 * word;
    if (another_follows_)
      for (const uint8_t* row : rows_)  // into L2: a tile is larger than L1
        __builtin_prefetch(row + kTileRows * matrix_.row_bytes + offset, 0, 2);
    if (bytes < kPieceBytes)
      transpose_part<kPieceBytes>(rows_, offset, bytes, groups_, words);
    else
      for (int g = 0; g < groups_; ++g) transpose_words(rows_ + kLanes * g, offset, words + kLanes * g);
  }

  // Adds the units unit .. stop - 1, of one block, for all tokens; `words` from that of the first unit on.
  template <int kBits>
  void add_units(const Plane& plane, int number, const uint32_t* words, int64_t unit, int64_t stop,
                 int64_t block) {
    int64_t t = 0;
    for (; t + 4 <= tokens_; t += 4) add_tokens<kBits, 4>(plane, number, words, unit, stop, block, t);
    if (t + 2 <= tokens_) {
      add_tokens<kBits, 2>(plane, number, words, unit, stop, block, t);
      t += 2;
    }
    if (t < tokens_) add_tokens<kBits, 1>(plane, number, words, unit, stop, block, t);
  }

  template <int kBits, int kTokens>
  void add_tokens(const Plane& plane, int number, const uint32_t* words, int64_t unit, int64_t stop,
                  int64_t block, int64_t t) {
    constexpr Units units = Units::of(kBits);
    const int64_t within = unit % units.a_word;
    Sums sums[kTokens];
    const float* floats[kTokens];
    for (int i = 0; i < kTokens; ++i)
      floats[i] = token(t + i) + layout_.plane_at[number] + (unit - within) * units.floats;
    multiply<kBits, kTokens>(plane, words, static_cast<int>(within), static_cast<int>(within + stop - unit),
                             floats, sums);
    if (matrix_.zeros && number == 0)
      for (int i = 0; i < kTokens; ++i)
        take_off_zeros(sums[i], block, sum_of(t + i, unit * units.columns, stop * units.columns));
    const float* const scale = scales_.scales(scale_format_, block);
    for (int i = 0; i < kTokens; ++i)
      for (int g = 0; g < kLanes * groups_; g += kLanes)
        for (int r = g; r < g + kLanes; ++r) totals_[t + i][r] += scale[r] * sums[i][r];
  }

  // Sixteens of rows share what is read of the tokens, as far as there are registers for their sums.
  template <int kBits, int kTokens>
  void multiply(const Plane& plane, const uint32_t* words, int begin, int end, const float* const* floats,
                Sums* sums) const {
    constexpr int kAll = kTileRows / kLanes;
    const auto rows = [&]<int kVectors>(int group) {
      const uint32_t* const from = words + kLanes * group;
      Sums* const to = reinterpret_cast<Sums*>(sums[0] + kLanes * group);
      if constexpr (kBits <= 2)
        look_up_rows<kTokens, kVectors>(from, begin, end, floats, to);
      else
        multiply_rows<kBits, kTokens, kVectors>(from, static_cast<int>(divide_up(end, 32 / kBits)),
                                                plane.values, floats, to);
    };
    if constexpr (kAccumulators >= 4 * kAll)
      if (groups_ == kAll) return rows.template operator()<kAll>(0);
    for (int g = 0; g < groups_; ++g) rows.template operator()<1>(g);
  }

  // The sum of x over columns, the first of which begins an octet.
  float sum_of(int64_t t, int64_t begin, int64_t end) const {
    const float* const sums = token(t) + layout_.sums_at;
    float sum = 0;
    for (int64_t octet = begin / kOctet; octet < divide_up(end, kOctet) && octet * kOctet < layout_.columns;
         ++octet)
      sum += sums[octet];
    return sum;
  }

  void take_off_zeros(Sums& sums, int64_t block, float x) {
    const float* const zero = zeros_.zeros(block);
    const float centre = static_cast<float>(matrix_.zero_centre);
    for (int g = 0; g < kLanes * groups_; g += kLanes)
      for (int r = g; r < g + kLanes; ++r) sums[r] -= (zero[r] - centre) * x;
  }

  const float* token(int64_t t) const { return prepared_ + t * layout_.floats; }

  const DeltaMatrix& matrix_;
  const TokenLayout& layout_;
  const float* const prepared_;
  const int64_t tokens_;
  const uint8_t* rows_[kTileRows];
  int groups_;
  bool another_follows_;
  WeightFormat scale_format_;
  BlockValues scales_, zeros_;
  Sums totals_[kMaxTokens];
};

}  // namespace graftwork::GRAFTWORK_LEVEL
