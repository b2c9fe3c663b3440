// How a warp reads streams that lie side by side in a payload, on any byte: through rings in shared memory.
#pragma once

#include <cstdint>

#include "cuda/support/reduce.cuh"
#include "cuda/support/simt.h"

namespace graftwork::cuda {

constexpr int kLineRegisters = 32;  // of 4 bytes, in a cache line

// A payload as registers, counted from the start of the cache line that holds its first byte. Only those
// that lie in it as a whole are loaded: its last bytes, if they do not fill one, are kept apart.
struct Payload {
  const uint32_t* lines;
  int64_t first, count;  // the registers that lie in it as a whole
  int lead, rest;        // bytes of it before those, and after
  uint32_t tail;         // the latter, once load_tail has run

  SIMT_DEVICE void load_tail() {
    const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(lines + first + count);
    tail = 0;
    for (int k = 0; k < 3; ++k)
      if (k < rest) tail |= static_cast<uint32_t>(simt::load_global(bytes + k)) << 8 * k;
  }

  // Register `index`: zero where the payload has no bytes, and for the up to 3 bytes before the first whole
  // one.
  SIMT_DEVICE uint32_t load(int64_t index) const {
    const uint64_t place = static_cast<uint64_t>(index - first);
    if (place < static_cast<uint64_t>(count)) return simt::load_global(lines + index);
    return place == static_cast<uint64_t>(count) ? tail : 0;
  }

  // Where byte `offset` of the payload lies, in bytes from `lines` on.
  SIMT_DEVICE int64_t byte(int64_t offset) const { return 4 * first - lead + offset; }

  // The four bytes from `byte` on.
  SIMT_DEVICE uint32_t load_at(int64_t byte) const {
    return simt::funnel_right(load(byte / 4), load(byte / 4 + 1), 8 * static_cast<uint32_t>(byte % 4));
  }
};

inline Payload payload_of(const uint8_t* bytes, int64_t size) {
  const auto address = reinterpret_cast<uintptr_t>(bytes);
  const int into_line = static_cast<int>(address % (4 * kLineRegisters)), lead = (4 - into_line % 4) % 4;
  if (size < lead) return {nullptr, 0, 0, 0, 0, 0};  // nothing that a stream could lie in
  Payload payload{};
  payload.lines = reinterpret_cast<const uint32_t*>(address - into_line);
  payload.first = (into_line + lead) / 4;
  payload.count = (size - lead) / 4;
  payload.lead = lead;
  payload.rest = static_cast<int>((size - lead) % 4);
  return payload;
}

// Two lines of a stream, kLine registers each, of which the first byte starts a register; the next line is
// under way. The first register is there again after the last, so that two neighbours can be read from any
// place.
template <int kLine>
class Ring {
 public:
  static constexpr int kRegisters = 2 * kLine + 4;  // of shared memory; the next array stays on 16 bytes

  // Opens the stream that begins at `byte`. Returns the place of its first register.
  SIMT_DEVICE uint32_t open(uint32_t* shared, const Payload& payload, int64_t byte) {
    cells_ = shared;
    const int64_t first = byte / 4;
    next_ = first - first % kLineRegisters;
    shift_ = 8 * static_cast<uint32_t>(byte % 4);
    line_ = 0;
    const uint32_t place = static_cast<uint32_t>(first - next_);
#pragma unroll 1
    for (uint32_t half = 0; half < 2; ++half) {
      fetch(payload);
      fill(half);
    }
    fetch(payload);
    return place;
  }

  // Makes the kLine registers from `place` on readable; places grow by at most kLine from call to call.
  SIMT_DEVICE void follow(uint32_t place, const Payload& payload) {
    if (place / kLine == line_) return;
    fill(line_ % 2);
    fetch(payload);
    ++line_;
  }

  SIMT_DEVICE const uint32_t* at(uint32_t place) const { return cells_ + place % (2 * kLine); }

  // Number `place` of the stream's 16-bit words.
  SIMT_DEVICE uint32_t half_at(uint32_t place) const {
    return simt::load_shared(reinterpret_cast<const uint16_t*>(cells_) + place % (4 * kLine));
  }

 private:
  static constexpr int kShare = kLine / kWarp;

  SIMT_DEVICE void fetch(const Payload& payload) {
#pragma unroll
    for (int k = 0; k < kShare; ++k) {
      low_[k] = payload.load(next_ + k * kWarp + threadIdx.x);
      high_[k] = payload.load(next_ + k * kWarp + threadIdx.x + 1);
    }
    next_ += kLine;
  }

  SIMT_DEVICE void fill(uint32_t half) {
    __syncwarp();
#pragma unroll
    for (int k = 0; k < kShare; ++k) {
      const uint32_t value = simt::funnel_right(low_[k], high_[k], shift_);
      simt::store_shared(cells_ + half * kLine + k * kWarp + threadIdx.x, value);
      if (k == 0 && half == 0 && threadIdx.x == 0) simt::store_shared(cells_ + 2 * kLine, value);
    }
    __syncwarp();
  }

  uint32_t* cells_;
  int64_t next_;  // register of the payload where the line after `low_` and `high_` begins
  uint32_t shift_;
  uint32_t line_;  // the first of the two that are readable
  uint32_t low_[kShare], high_[kShare];
};

}  // namespace graftwork::cuda
