// The loops of merge_many.h.
#pragma once

#include "core/merge/merge_tiles.inl"
#include "core/merge/rounding.inl"

namespace graftwork::GRAFTWORK_LEVEL {

enum class Consensus : int { none = 0, sum = 1, count = 2, unweighted_sum = 3 };

constexpr float kLeastDivisor = 1e-8f;  // sums of weights below count as 0

struct MixPlan {
  const float *coefficients, *weights;
  int64_t rows;
  Consensus consensus;
  bool normalize;
  float scale;
};

// What is not finite in the donors and the base; tiles that have any are few.
struct NonfiniteCounts {
  const Donors& donors;
  int64_t* counts;

  void clear() const {
    for (int64_t t = 0; t <= donors.count; ++t) {
      counts[2 * t] = 0;
      counts[2 * t + 1] = -1;
    }
  }

  void add_tile(int64_t tensor, int64_t begin, int count) const {
    alignas(64) float values[kTileRoom];
    donors.load(tensor, begin, count, nullptr, values);
    int64_t found = 0, first = -1;
    for (int i = count - 1; i >= 0; --i) {
      const bool finite = absolute_bits(values[i]) < kInfinity32;
      found += !finite;
      first = finite ? first : begin + i;
    }
#pragma omp critical(graftwork_nonfinite)
    {
      counts[2 * tensor] += found;
      int64_t& least = counts[2 * tensor + 1];
      if (least < 0 || first < least) least = first;
    }
  }
};

inline float sign_of(float x) { return static_cast<float>((x > 0) - (x < 0)); }

// sums[i] = addend(i) for the first donor, sums[i] + addend(i) for the others.
template <class Addend>
inline void accumulate(bool first, int count, float* __restrict sums, const Addend& addend) {
  if (first)
    for (int i = 0; i < count; ++i) sums[i] = addend(i);
  else
    for (int i = 0; i < count; ++i) sums[i] += addend(i);
}

// Multiplies a donor's differences by its coefficient, where a vote will need the products, and adds its votes.
inline void weigh(Consensus consensus, bool first, float coefficient, int count, float* __restrict values,
                  float* __restrict votes) {
  if (consensus == Consensus::none)
    return accumulate(first, count, votes, [=](int i) { return values[i] * coefficient; });
  if (consensus == Consensus::unweighted_sum)
    accumulate(first, count, votes, [=](int i) { return values[i]; });
  for (int i = 0; i < count; ++i) values[i] *= coefficient;
  if (consensus == Consensus::sum) accumulate(first, count, votes, [=](int i) { return values[i]; });
  if (consensus == Consensus::count)
    accumulate(first, count, votes, [=](int i) { return sign_of(values[i]); });
}

// Adds the products of a donor that have the sign of the votes, and its weight; a NaN always has it.
template <bool kFirst>
inline void add_agreeing(const float* __restrict votes, const float* __restrict products, float weight,
                         int count, float* __restrict mixed, float* __restrict divisor) {
  for (int i = 0; i < count; ++i) {
    const float along = votes[i] >= 0 ? products[i] : -products[i];
    const bool agrees = !(along <= 0);
    const float product = agrees ? products[i] : 0.0f, share = agrees ? weight : 0.0f;
    mixed[i] = kFirst ? product : mixed[i] + product;
    divisor[i] = kFirst ? share : divisor[i] + share;
  }
}

// One thread's arrays, besides its room.
struct MixTile {
  alignas(64) float votes[kTileRoom];
  alignas(64) float mixed[kTileRoom];
  alignas(64) float divisor[kTileRoom];

  // Where all differences are added: they need not be kept.
  const float* add_up(const MixPlan& plan, const Donors& donors, const float* coefficients,
                      const TileReader& reader, const NonfiniteCounts& nonfinite) {
    const float* const less = donors.has_base() ? reader.base : nullptr;
    for (int64_t donor = 0; donor < donors.count; ++donor)
      if (!add_donor(donors, donor, reader.begin, less, coefficients[donor], donor == 0, reader.count, votes))
        nonfinite.add_tile(donor, reader.begin, reader.count);
    return settle(plan, donors.count, reader.count, votes);
  }

  // The sum of the tiles' products that agree with the vote.
  const float* mix(const MixPlan& plan, int64_t donors, const float* coefficients, int count, float* tiles) {
    for (int64_t donor = 0; donor < donors; ++donor)
      weigh(plan.consensus, donor == 0, coefficients[donor], count, tiles + donor * kTileRoom, votes);
    if (plan.consensus == Consensus::none) return settle(plan, donors, count, votes);
    add_agreeing<true>(votes, tiles, plan.weights[0], count, mixed, divisor);
    for (int64_t donor = 1; donor < donors; ++donor)
      add_agreeing<false>(votes, tiles + donor * kTileRoom, plan.weights[donor], count, mixed, divisor);
    return settle(plan, donors, count, mixed);
  }

 private:
  // Divides and scales the sum.
  const float* settle(const MixPlan& plan, int64_t donors, int count, float* __restrict sum) const {
    if (plan.normalize && plan.consensus == Consensus::none) {
      float total = 0;
      for (int64_t donor = 0; donor < donors; ++donor) total += plan.weights[donor];
      const float by = __builtin_fabsf(total) < kLeastDivisor ? 1.0f : total;
      for (int i = 0; i < count; ++i) sum[i] /= by;
    } else if (plan.normalize) {
      for (int i = 0; i < count; ++i)
        sum[i] /= __builtin_fabsf(divisor[i]) < kLeastDivisor ? 1.0f : divisor[i];
    }
    if (plan.scale != 1)
      for (int i = 0; i < count; ++i) sum[i] *= plan.scale;
    return sum;
  }
};

// Adds the sum of a tile to its base, and writes it.
inline void write_merged(const MergeInputs& in, const Output& out, const NonfiniteCounts& nonfinite,
                         TileReader& reader, const float* moved, WrittenCounts& counts) {
  const int64_t donors = in.donors.count;
  if (!in.donors.has_base())
    return write_tile<Values::moved>(out, reader.begin, reader.count, moved, false, moved, counts);
  if (!reader.base_finite) nonfinite.add_tile(donors, reader.begin, reader.count);
  reader.settle_base();
  const bool exact = in.donors.formats[donors] == static_cast<int32_t>(out.format) && reader.base_finite;
  write_tile<Values::start_and_moved>(out, reader.begin, reader.count, reader.base, exact, moved, counts);
}

inline void merge_chunk(const MergeInputs& in, const MixPlan& plan, const Output& out,
                        const NonfiniteCounts& nonfinite, const MergeRoom& room, int64_t begin, int64_t end,
                        WrittenCounts& counts) {
  const int64_t donors = in.donors.count, stretch = in.numel / plan.rows;
  TileReader reader(in.donors);
  MixTile tile;
  const auto coefficients = [&] { return plan.coefficients + reader.begin / stretch * donors; };
  const bool linear = in.rule.kind == SparsifyKind::none && plan.consensus == Consensus::none;
  if (linear && !in.donors.zero_nonfinite) {
    for (; begin < end; begin += reader.count) {
      reader.move_to(begin, tile_count(begin, end, stretch));
      const float* const moved = tile.add_up(plan, in.donors, coefficients(), reader, nonfinite);
      write_merged(in, out, nonfinite, reader, moved, counts);
    }
    return;
  }
  for_each_merge_tile(
      in, reader, room, begin, end, stretch,
      [&](int64_t donor, bool finite) {
        if (!finite) nonfinite.add_tile(donor, reader.begin, reader.count);
      },
      [&] {
        const float* const moved = tile.mix(plan, donors, coefficients(), reader.count, room.tiles);
        write_merged(in, out, nonfinite, reader, moved, counts);
      });
}

inline void merge_into(const MergeInputs& in, const MixPlan& plan, const Output& out, int64_t* counts,
                       uint8_t* workspace, int threads) {
  const NonfiniteCounts nonfinite{in.donors, counts};
  nonfinite.clear();
  int64_t* const written = counts + 2 * in.donors.count + 2;
  for (int k = 0; k < 3; ++k) written[k] = 0;
  struct State {
    uint8_t* memory = nullptr;
    WrittenCounts counts{};
  };
  const int64_t donors = in.donors.count, columns = in.rule.columns;
  Slots slots{workspace, MergeRoom::bytes(donors, in.rule.kind, columns)};
  const Chunks chunks = in.chunks();
  parallel_chunks<State>(
      chunks, threads,
      [&](State& mine, int chunk) {
        if (mine.memory == nullptr) mine.memory = slots.take();
        merge_chunk(in, plan, out, nonfinite, MergeRoom::at(mine.memory, donors, columns),
                    chunks.begin(chunk), chunks.end(chunk), mine.counts);
      },
      [&](const State& mine) {
        written[0] += mine.counts.changed;
        written[1] += mine.counts.lost;
        written[2] += mine.counts.overflowed;
      });
}

}  // namespace graftwork::GRAFTWORK_LEVEL
