#include "core/lossless_delta/ordinal_planes.h"

#include <stdexcept>

#include "core/lossless_delta/ordinal_planes.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

template <class Call>
void with_word(int word_bytes, bool is_float, const Call& call) {
  switch (2 * word_bytes + is_float) {
    case 2: return call.template operator()<uint8_t, false>();
    case 3: return call.template operator()<uint8_t, true>();
    case 4: return call.template operator()<uint16_t, false>();
    case 5: return call.template operator()<uint16_t, true>();
    case 8: return call.template operator()<uint32_t, false>();
    case 9: return call.template operator()<uint32_t, true>();
    case 16: return call.template operator()<uint64_t, false>();
    case 17: return call.template operator()<uint64_t, true>();
    default: throw std::invalid_argument("word_bytes must be 1, 2, 4 or 8");
  }
}

void encode_ordinal_planes(const void* base, const void* tuned, uint8_t* planes, int64_t numel,
                           int word_bytes, bool is_float, int threads) {
  with_word(word_bytes, is_float, [=]<class Word, bool floating>() {
    encode_words<Word, floating>(base, tuned, planes, numel, threads);
  });
}

void decode_ordinal_planes(const void* base, const uint8_t* planes, void* tuned, int64_t numel,
                           int word_bytes, bool is_float, bool reverse, int threads) {
  with_word(word_bytes, is_float, [=]<class Word, bool floating>() {
    decode_words<Word, floating>(base, planes, tuned, numel, reverse, threads);
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(encode_ordinal_planes,
                   (const void* base, const void* tuned, uint8_t* planes, int64_t numel, int word_bytes,
                    bool is_float, int threads),
                   (base, tuned, planes, numel, word_bytes, is_float, threads))
GRAFTWORK_DISPATCH(decode_ordinal_planes,
                   (const void* base, const uint8_t* planes, void* tuned, int64_t numel, int word_bytes,
                    bool is_float, bool reverse, int threads),
                   (base, planes, tuned, numel, word_bytes, is_float, reverse, threads))

}  // namespace graftwork
