// Which contexts share a probability table: chosen from what the tables and the symbols cost, in integers, so that
// every level and thread makes the same bytes.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/entropy_delta/rans_model.h"
#include "core/entropy_delta/rans_table.inl"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kLogBits = 24;       // binary digits of a logarithm
constexpr int kLogIndexBits = 10;  // a step of the table, between whose points it is a straight line

struct LogTable {
  uint32_t value[(1 << kLogIndexBits) + 1];

  constexpr LogTable() : value() {
    for (int i = 0; i <= 1 << kLogIndexBits; ++i) {
      // log2(1 + i / 2^10), a binary digit a squaring
      uint64_t y = (uint64_t{1} << 31) + (static_cast<uint64_t>(i) << (31 - kLogIndexBits));
      uint32_t log = 0;
      if (i == 1 << kLogIndexBits) {
        value[i] = 1u << kLogBits;
        continue;
      }
      for (int digit = 0; digit < kLogBits; ++digit) {
        y = (y * y) >> 31;
        log <<= 1;
        if (y >= uint64_t{1} << 32) {
          log |= 1;
          y >>= 1;
        }
      }
      value[i] = log;
    }
  }
};

constexpr LogTable kLog{};

// n log2(n) in units of 2^-24 bits, for n < 2^24.
inline int64_t log_weight(uint32_t n) {
  if (n < 2) return 0;
  const int whole = bits_of(n) - 1;
  const uint32_t fraction = (n << (23 - whole)) & 0x7fffff;  // 23 bits below the leading one
  const uint32_t i = fraction >> (23 - kLogIndexBits), rest = fraction & ((1u << (23 - kLogIndexBits)) - 1);
  const uint64_t step = kLog.value[i + 1] - kLog.value[i];
  const uint64_t log =
      (static_cast<uint64_t>(whole) << kLogBits) + kLog.value[i] + ((step * rest) >> (23 - kLogIndexBits));
  return static_cast<int64_t>(n * log);
}

// Contexts that share a table. Costs are in units of 2^-24 bits.
struct ContextGroup {
  uint32_t counts[kMaxSymbols];
  uint32_t total;
  int64_t cost;   // of its symbols and of its table
  uint64_t size;  // sum of |class|: what the contexts are ordered by
  int next;       // the group after it, -1 at the end
};

struct ContextCounts {
  uint32_t counts[kMaxLevels][kExponentSlots][kMaxSymbols];
};

inline int64_t group_cost(const uint32_t* counts, uint32_t total, int symbols) {
  int64_t bits = log_weight(total);
  int low = symbols, high = -1, table = 14;
  for (int s = 0; s < symbols; ++s) {
    if (counts[s] == 0) continue;
    bits -= log_weight(counts[s]);
    if (low == symbols) low = s;
    high = s;
    const uint32_t share = static_cast<uint32_t>((uint64_t{counts[s]} << kProbabilityBits) / total);
    table += share > 1 ? bits_of(share) - 1 : 0;
  }
  table += 4 * (high - low + 1);
  return bits + (static_cast<int64_t>(table) << kLogBits);
}

inline int64_t joint_cost(const ContextGroup& one, const ContextGroup& other, int symbols) {
  uint32_t counts[kMaxSymbols];
  for (int s = 0; s < symbols; ++s) counts[s] = one.counts[s] + other.counts[s];
  return group_cost(counts, one.total + other.total, symbols);
}

// Workspace of choose_tables: groups, and which group a context belongs to.
struct ModelScratch {
  ContextGroup groups[kMaxLevels * kExponentSlots];
  int64_t saving[kMaxLevels * kExponentSlots];  // of joining a group with the next one
  int16_t order[kMaxLevels * kExponentSlots];
  int16_t group_of[kMaxLevels * kExponentSlots];
};

// Contexts in the order of their mean |class|: neighbours have similar distributions.
inline int order_contexts(const ContextCounts& from, int levels, int symbols, ModelScratch& scratch) {
  int used = 0;
  for (int q = 0; q < levels; ++q)
    for (int x = 0; x < kExponentSlots; ++x) {
      const int context = q * kExponentSlots + x;
      ContextGroup& group = scratch.groups[context];
      group.total = 0;
      group.size = 0;
      for (int s = 0; s < symbols; ++s) {
        const uint32_t count = from.counts[q][x][s];
        group.counts[s] = count;
        group.total += count;
        group.size += uint64_t{count} * (s > symbols / 2 ? s - symbols / 2 : symbols / 2 - s);
      }
      scratch.group_of[context] = -1;
      if (group.total == 0) continue;
      group.cost = group_cost(group.counts, group.total, symbols);
      int at = used++;
      for (; at > 0; --at) {
        const ContextGroup& before = scratch.groups[scratch.order[at - 1]];
        if (before.size * group.total <= group.size * before.total) break;
        scratch.order[at] = scratch.order[at - 1];
      }
      scratch.order[at] = static_cast<int16_t>(context);
    }
  return used;
}

// Joins neighbouring groups while that saves bits, or while there are too many. Returns the bits, in units of 2^-24.
inline int64_t join_contexts(ModelScratch& scratch, int used, int symbols, int* tables) {
  ContextGroup* const groups = scratch.groups;
  int64_t total = 0;
  for (int i = 0; i < used; ++i) {
    ContextGroup& group = groups[scratch.order[i]];
    group.next = i + 1 < used ? scratch.order[i + 1] : -1;
    scratch.group_of[scratch.order[i]] = scratch.order[i];
    total += group.cost;
  }
  const auto saving = [&](int g) {
    const ContextGroup& after = groups[groups[g].next];
    return groups[g].cost + after.cost - joint_cost(groups[g], after, symbols);
  };
  const int first = used > 0 ? scratch.order[0] : -1;
  for (int g = first; g >= 0 && groups[g].next >= 0; g = groups[g].next) scratch.saving[g] = saving(g);
  int count = used;
  for (; count > 1; --count) {
    int best = first, before_best = -1;
    for (int g = first, before = -1; groups[g].next >= 0; before = g, g = groups[g].next)
      if (g == first || scratch.saving[g] > scratch.saving[best]) best = g, before_best = before;
    if (scratch.saving[best] <= 0 && count <= kMaxTables) break;
    ContextGroup& group = groups[best];
    const int joined = group.next;
    for (int s = 0; s < symbols; ++s) group.counts[s] += groups[joined].counts[s];
    group.total += groups[joined].total;
    group.cost += groups[joined].cost - scratch.saving[best];
    total -= scratch.saving[best];
    group.next = groups[joined].next;
    for (int i = 0; i < used; ++i)
      if (scratch.group_of[scratch.order[i]] == joined)
        scratch.group_of[scratch.order[i]] = static_cast<int16_t>(best);
    if (group.next >= 0) scratch.saving[best] = saving(best);
    if (before_best >= 0) scratch.saving[before_best] = saving(before_best);
  }
  *tables = count;
  return total;
}

// Fills the model's tables from the counts of `levels` levels. Returns what header and symbols cost, in bits.
inline int64_t choose_tables(const ContextCounts& from, int levels, int symbols, RansModel& model,
                             ModelScratch& scratch) {
  const int used = order_contexts(from, levels, symbols, scratch);
  model.levels = levels;
  const int64_t cost = join_contexts(scratch, used, symbols, &model.tables);
  int number = 0;
  for (int g = used > 0 ? scratch.order[0] : -1; g >= 0; g = scratch.groups[g].next, ++number) {
    normalise(scratch.groups[g].counts, symbols, model.frequency[number]);
    scratch.saving[g] = number;  // the group's number from here on
  }
  // A context that does not occur takes the number of the one before it.
  uint8_t last = 0;
  for (int q = 0; q < levels; ++q)
    for (int x = 0; x < kExponentSlots; ++x) {
      const int group = scratch.group_of[q * kExponentSlots + x];
      if (group >= 0) last = static_cast<uint8_t>(scratch.saving[group]);
      model.table_of[q][x] = last;
    }
  const int fixed = 8 * (8 + 2 * (levels - 1)) + 4 * kExponentSlots * levels;
  return (cost >> kLogBits) + fixed;
}

inline uint8_t* write_model(const RansModel& model, int symbols, uint32_t words, uint8_t* out) {
  out[0] = static_cast<uint8_t>(bits_of(model.levels) - 1);
  out[1] = static_cast<uint8_t>(model.tables);
  out[2] = static_cast<uint8_t>(model.first_exponent);
  out[3] = 0;
  std::memcpy(out + 4, &words, 4);
  out += 8;
  std::memcpy(out, model.thresholds, 2 * (model.levels - 1));
  BitWriter bits(out + 2 * (model.levels - 1));
  for (int x = 0; x < kExponentSlots; ++x)
    for (int q = 0; q < model.levels; ++q) bits.put(model.table_of[q][x], 4);
  for (int t = 0; t < model.tables; ++t) write_table(bits, model.frequency[t], symbols);
  return bits.finish();
}

// The bytes of a segment's header, or -1 if it is malformed.
inline int64_t read_model(const uint8_t* in, int64_t size, int symbols, RansModel& model, uint32_t* words) {
  if (size < 8 || in[0] > 3 || in[1] < 1 || in[1] > kMaxTables || in[3] != 0) return -1;
  model.levels = 1 << in[0];
  model.tables = in[1];
  model.first_exponent = in[2];
  std::memcpy(words, in + 4, 4);
  const int64_t at = 8 + 2 * (model.levels - 1);
  if (size < at) return -1;
  std::memcpy(model.thresholds, in + 8, 2 * (model.levels - 1));
  for (int q = 1; q + 1 < model.levels; ++q)
    if (model.thresholds[q] < model.thresholds[q - 1]) return -1;
  BitReader bits{in + at, size - at};
  for (int x = 0; x < kExponentSlots; ++x)
    for (int q = 0; q < model.levels; ++q) {
      model.table_of[q][x] = static_cast<uint8_t>(bits.get(4));
      if (model.table_of[q][x] >= model.tables) return -1;
    }
  for (int t = 0; t < model.tables; ++t)
    if (!read_table(bits, model.frequency[t], symbols)) return -1;
  return at + ((bits.at + 7) >> 3);
}

}  // namespace graftwork::GRAFTWORK_LEVEL
