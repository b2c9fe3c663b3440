#include "core/sparse_update/take_entries.h"

#include "core/sparse_update/arena.h"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

// False if a source is outside.
template <class Word>
bool take_range(const int64_t* source, int64_t begin, int64_t end, const Word* old, int64_t old_count,
                const Word* fresh, int64_t fresh_count, int fresh_step, Word* taken) {
  bool inside = true;
  for (int64_t i = begin; i < end; ++i) {
    const bool kept = source[i] >= 0;
    const int64_t number = kept ? source[i] : (-1 - source[i]) * fresh_step;
    const bool there = number < (kept ? old_count : fresh_count);
    inside &= there;
    taken[i] = there ? (kept ? old : fresh)[number] : Word{0};
  }
  return inside;
}

template <class Call>
void with_element(int element_bytes, const Call& call) {
  switch (element_bytes) {
    case 1: return call.template operator()<uint8_t>();
    case 2: return call.template operator()<uint16_t>();
    case 4: return call.template operator()<uint32_t>();
    case 8: return call.template operator()<uint64_t>();
    default: throw std::invalid_argument("element_bytes must be 1, 2, 4 or 8");
  }
}

void take_entries(const int64_t* source, int64_t entries, const void* old, int64_t old_count,
                  const void* fresh, int64_t fresh_count, int fresh_step, int element_bytes, void* taken,
                  int64_t* outside, int threads) {
  struct State {
    bool inside = true;
  };
  with_element(element_bytes, [&]<class Word>() {
    *outside = 0;
    const Chunks chunks = cut_entries(entries);
    parallel_chunks<State>(
        chunks, threads,
        [&](State& state, int chunk) {
          state.inside &= take_range(
              source, chunks.begin(chunk), chunks.end(chunk), static_cast<const Word*>(old), old_count,
              static_cast<const Word*>(fresh), fresh_count, fresh_step, static_cast<Word*>(taken));
        },
        [&](const State& state) { *outside |= !state.inside; });
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(take_entries,
                   (const int64_t* source, int64_t entries, const void* old, int64_t old_count,
                    const void* fresh, int64_t fresh_count, int fresh_step, int element_bytes, void* taken,
                    int64_t* outside, int threads),
                   (source, entries, old, old_count, fresh, fresh_count, fresh_step, element_bytes, taken,
                    outside, threads))

}  // namespace graftwork
