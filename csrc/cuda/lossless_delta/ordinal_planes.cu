// The limit is memory, so every access is a whole coalesced vector: a thread takes 16 bytes of base and
// tuned, transposes their bytes in registers, and moves 16 / word_bytes bytes of each plane. One word alone
// (misaligned pointers, odd sizes) takes the same path with one byte of each plane; a warp's accesses are
// contiguous there too. Arithmetic runs on all words of a register at once: one at a time, bytes would be
// bound by it.
#include "cuda/lossless_delta/ordinal_planes.cuh"

#include <algorithm>
#include <cstring>

#include "cuda/support/device.cuh"
#include "cuda/support/numeric.cuh"
#include "cuda/support/simt.h"

namespace graftwork::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = int64_t{1} << 20;
constexpr int kVectorBytes = 16;

struct alignas(kVectorBytes) Vector {
  uint32_t part[4];
};

// What one access moves.
template <int kBytes>
struct Unit;
template <>
struct Unit<1> {
  using Type = uint8_t;
};
template <>
struct Unit<2> {
  using Type = uint16_t;
};
template <>
struct Unit<4> {
  using Type = uint32_t;
};
template <>
struct Unit<8> {
  using Type = uint64_t;
};
template <>
struct Unit<16> {
  using Type = Vector;
};

// kCount words of kWordBytes: 16 bytes of them, or one.
template <int kWordBytes, bool kVector>
struct Layout {
  static constexpr int kCount = kVector ? kVectorBytes / kWordBytes : 1;
  static constexpr int kUnroll = kVector ? 2 : 4;  // units in flight a thread
  using Words = typename Unit<kCount * kWordBytes>::Type;
  using Bytes = typename Unit<kCount>::Type;  // their share of one plane
};

// A matrix of kRows x kColumns bytes, row by row, transposed: a whole vector of them, or one row or column.
template <int kRows, int kColumns>
SIMT_DEVICE Vector transpose_bytes(const Vector& matrix) {
  if constexpr (kRows == 1 || kColumns == 1) {
    return matrix;
  } else {
    const auto pair = [&matrix](int k) {  // bytes k and k + 1 of the result
      const int low = k % kRows * kColumns + k / kRows, high = (k + 1) % kRows * kColumns + (k + 1) / kRows;
      const uint32_t selector = static_cast<uint32_t>(low % 4 | (4 + high % 4) << 4);
      return simt::permute_bytes(matrix.part[low / 4], matrix.part[high / 4], selector);
    };
    Vector result;
#pragma unroll
    for (int k = 0; k < 4; ++k) result.part[k] = simt::permute_bytes(pair(4 * k), pair(4 * k + 2), 0x5410);
    return result;
  }
}

template <class To>
SIMT_DEVICE To unit_of(const Vector& vector, int index) {
  To unit;
  memcpy(&unit, reinterpret_cast<const char*>(&vector) + index * sizeof(To), sizeof unit);
  return unit;
}

template <class From>
SIMT_DEVICE void set_unit(Vector& vector, int index, const From& unit) {
  memcpy(reinterpret_cast<char*>(&vector) + index * sizeof(From), &unit, sizeof unit);
}

// The vector of change(base register, other register) for each register of two vectors.
template <int kWordBytes, class Change>
SIMT_DEVICE Vector map_registers(const Vector& base, const Vector& other, const Change& change) {
  using Word = Register<kWordBytes>;
  Vector result;
#pragma unroll
  for (int k = 0; k < kVectorBytes / static_cast<int>(sizeof(Word)); ++k)
    set_unit(result, k, change(unit_of<Word>(base, k), unit_of<Word>(other, k)));
  return result;
}

template <int kWordBytes, bool kFloat>
SIMT_DEVICE Vector codes_of(const Vector& base, const Vector& tuned) {
  return map_registers<kWordBytes>(base, tuned, [](auto from, auto to) {
    if constexpr (kFloat) {
      from = ordinal<kWordBytes>(from);
      to = ordinal<kWordBytes>(to);
    }
    return zigzag<kWordBytes>(subtract_lanes<kWordBytes>(to, from));
  });
}

template <int kWordBytes, bool kFloat>
SIMT_DEVICE Vector words_of(const Vector& base, const Vector& codes, bool reverse) {
  return map_registers<kWordBytes>(base, codes, [reverse](auto from, auto code) {
    if constexpr (kFloat) from = ordinal<kWordBytes>(from);
    const auto moved = from_zigzag<kWordBytes>(code);
    auto position = reverse ? subtract_lanes<kWordBytes>(from, moved) : add_lanes<kWordBytes>(from, moved);
    if constexpr (kFloat) position = from_ordinal<kWordBytes>(position);
    return position;
  });
}

// For every unit of this thread: finish(load(unit), unit), with kUnroll loads under way at a time.
template <class Shape, class Load, class Finish>
SIMT_DEVICE void for_each_unit(int64_t numel, const Load& load, const Finish& finish) {
  constexpr int64_t kTile = int64_t{kThreads} * Shape::kUnroll;
  const int64_t units = numel / Shape::kCount;
  for (int64_t first = blockIdx.x * kTile + threadIdx.x; first < units; first += gridDim.x * kTile) {
    decltype(load(first)) loaded[Shape::kUnroll];
#pragma unroll
    for (int k = 0; k < Shape::kUnroll; ++k)
      if (first + k * kThreads < units) loaded[k] = load(first + k * kThreads);
#pragma unroll
    for (int k = 0; k < Shape::kUnroll; ++k)
      if (first + k * kThreads < units) finish(loaded[k], first + k * kThreads);
  }
}

template <class Unit>
SIMT_DEVICE Vector load_unit(const uint8_t* tensor, int64_t unit) {
  Vector vector = {};
  set_unit(vector, 0, simt::load_global(reinterpret_cast<const Unit*>(tensor) + unit));
  return vector;
}

struct VectorPair {
  Vector first, second;
};

template <int kWordBytes, bool kFloat, bool kVector>
__global__ void __launch_bounds__(kThreads)
    encode_ordinal_planes_kernel(const uint8_t* base, const uint8_t* tuned, uint8_t* planes, int64_t numel) {
  using Shape = Layout<kWordBytes, kVector>;
  using Bytes = typename Shape::Bytes;
  const auto load = [=](int64_t unit) {
    return VectorPair{load_unit<typename Shape::Words>(base, unit),
                      load_unit<typename Shape::Words>(tuned, unit)};
  };
  for_each_unit<Shape>(numel, load, [=](const VectorPair& words, int64_t unit) {
    const Vector codes = codes_of<kWordBytes, kFloat>(words.first, words.second);
    const Vector bytes = transpose_bytes<Shape::kCount, kWordBytes>(codes);
#pragma unroll
    for (int plane = 0; plane < kWordBytes; ++plane)
      simt::store_global(reinterpret_cast<Bytes*>(planes + plane * numel) + unit,
                         unit_of<Bytes>(bytes, plane));
  });
}

template <int kWordBytes, bool kFloat, bool kVector>
__global__ void __launch_bounds__(kThreads)
    decode_ordinal_planes_kernel(const uint8_t* base, const uint8_t* planes, uint8_t* tuned, int64_t numel,
                                 bool reverse) {
  using Shape = Layout<kWordBytes, kVector>;
  using Words = typename Shape::Words;
  using Bytes = typename Shape::Bytes;
  const auto load = [=](int64_t unit) {
    VectorPair words{load_unit<Words>(base, unit), {}};
#pragma unroll
    for (int plane = 0; plane < kWordBytes; ++plane)
      set_unit(words.second, plane,
               simt::load_global(reinterpret_cast<const Bytes*>(planes + plane * numel) + unit));
    return words;
  };
  for_each_unit<Shape>(numel, load, [=](const VectorPair& words, int64_t unit) {
    const Vector codes = transpose_bytes<kWordBytes, Shape::kCount>(words.second);
    const Vector result = words_of<kWordBytes, kFloat>(words.first, codes, reverse);
    simt::store_global(reinterpret_cast<Words*>(tuned) + unit, unit_of<Words>(result, 0));
  });
}

bool lies_on(const void* address, int bytes) { return reinterpret_cast<uintptr_t>(address) % bytes == 0; }

template <bool kVector>
struct Path {
  static constexpr bool vector = kVector;
};
template <int kWordBytes, bool kFloat>
struct Kind {
  static constexpr int word_bytes = kWordBytes;
  static constexpr bool is_float = kFloat;
};

// Calls call(kind, path, blocks) with the word's kind and the widest path that the pointers allow.
template <int kWordBytes, bool kFloat, class Call>
int with_path(const void* base, const void* tuned, const void* planes, int64_t numel, const Call& call) {
  const auto blocks = [numel](auto layout) {
    const int64_t tile = int64_t{kThreads} * layout.kUnroll * layout.kCount;
    return std::min((numel + tile - 1) / tile, kMaxBlocks);
  };
  constexpr int kCount = kVectorBytes / kWordBytes;
  if (lies_on(base, kVectorBytes) && lies_on(tuned, kVectorBytes) && lies_on(planes, kCount) &&
      numel % kCount == 0)
    return call(Kind<kWordBytes, kFloat>{}, Path<true>{}, blocks(Layout<kWordBytes, true>{}));
  return call(Kind<kWordBytes, kFloat>{}, Path<false>{}, blocks(Layout<kWordBytes, false>{}));
}

template <class Call>
int dispatch(const void* base, const void* tuned, const void* planes, int64_t numel, int word_bytes,
             bool is_float, const Call& call) {
  if (numel == 0) return 0;
  switch (2 * word_bytes + is_float) {
    case 2: return with_path<1, false>(base, tuned, planes, numel, call);
    case 3: return with_path<1, true>(base, tuned, planes, numel, call);
    case 4: return with_path<2, false>(base, tuned, planes, numel, call);
    case 5: return with_path<2, true>(base, tuned, planes, numel, call);
    case 8: return with_path<4, false>(base, tuned, planes, numel, call);
    case 9: return with_path<4, true>(base, tuned, planes, numel, call);
    case 16: return with_path<8, false>(base, tuned, planes, numel, call);
    case 17: return with_path<8, true>(base, tuned, planes, numel, call);
    default: return kInvalidArgument;
  }
}

}  // namespace

int encode_ordinal_planes(const void* base, const void* tuned, uint8_t* planes, int64_t numel, int word_bytes,
                          bool is_float, void* stream) {
  return dispatch(
      base, tuned, planes, numel, word_bytes, is_float, [=](auto kind, auto path, int64_t blocks) {
        constexpr auto kernel = encode_ordinal_planes_kernel<kind.word_bytes, kind.is_float, path.vector>;
        return simt::launch<kernel>(blocks, kThreads, 0, stream, static_cast<const uint8_t*>(base),
                                    static_cast<const uint8_t*>(tuned), planes, numel);
      });
}

int decode_ordinal_planes(const void* base, const uint8_t* planes, void* tuned, int64_t numel, int word_bytes,
                          bool is_float, bool reverse, void* stream) {
  return dispatch(
      base, tuned, planes, numel, word_bytes, is_float, [=](auto kind, auto path, int64_t blocks) {
        constexpr auto kernel = decode_ordinal_planes_kernel<kind.word_bytes, kind.is_float, path.vector>;
        return simt::launch<kernel>(blocks, kThreads, 0, stream, static_cast<const uint8_t*>(base), planes,
                                    static_cast<uint8_t*>(tuned), numel, reverse);
      });
}

}  // namespace graftwork::cuda
