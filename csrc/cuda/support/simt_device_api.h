// The names of CUDA and of simt.h that kernels use, in terms of simt_fibers.h.
#pragma once

#include <source_location>
#include <string>

#include "cuda/support/simt_fibers.h"

#define threadIdx (graftwork::simt::block->current->index)
#define blockIdx (graftwork::simt::block->index)
#define blockDim (graftwork::simt::block->threads)
#define gridDim (graftwork::simt::block->grid)

inline void __syncthreads() { graftwork::simt::yield(graftwork::simt::State::at_block_barrier); }
inline void __syncwarp(unsigned mask = ~0u) { graftwork::simt::wait_warp(mask); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return graftwork::simt::shuffle(mask, value, static_cast<unsigned>(source) % 32);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int offset) {
  const unsigned lane = graftwork::simt::block->current->linear % 32;
  return graftwork::simt::shuffle(mask, value, (lane ^ static_cast<unsigned>(offset)) % 32);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned offset) {
  const unsigned lane = graftwork::simt::block->current->linear % 32;
  return graftwork::simt::shuffle(mask, value, lane >= offset ? lane - offset : lane);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned offset) {
  const unsigned lane = graftwork::simt::block->current->linear % 32;
  return graftwork::simt::shuffle(mask, value, lane + offset < 32 ? lane + offset : lane);
}

// The lanes of `mask` for which `holds` is true of their deposit.
template <class Holds>
unsigned graftwork_lanes_where(unsigned mask, const uint64_t* deposits, const Holds& holds) {
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1 && holds(deposits[lane])) lanes |= 1u << lane;
  return lanes;
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return graftwork::simt::collective(mask, predicate, [mask](const uint64_t* deposits) {
    return graftwork_lanes_where(mask, deposits, [](uint64_t deposit) { return deposit != 0; });
  });
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  uint64_t mine = 0;
  std::memcpy(&mine, &value, sizeof value);
  return graftwork::simt::collective(mask, value, [mask, mine](const uint64_t* deposits) {
    return graftwork_lanes_where(mask, deposits, [mine](uint64_t deposit) { return deposit == mine; });
  });
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return graftwork::simt::collective(mask, value, [mask](const uint64_t* deposits) {
    unsigned sum = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1) sum += static_cast<unsigned>(deposits[lane]);
    return sum;
  });
}

// One operation, rounded to the nearest once; the host is compiled without contraction to fused operations.
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }

namespace graftwork::simt {

using Location = std::source_location;

template <class T>
void record(Access kind, const T* address, const Location& at) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0)
    fail("line " + std::to_string(at.line()) + ": an access of " + std::to_string(sizeof(T)) +
         " bytes is misaligned");
  counters.record(kind, block->current->linear, address, sizeof(T), at);
}

template <class T>
T load_global(const T* address, const Location& at = Location::current()) {
  record(Access::global_load, address, at);
  T value;
  std::memcpy(&value, static_cast<const void*>(address), sizeof value);
  return value;
}

template <class T>
void store_global(T* address, const T& value, const Location& at = Location::current()) {
  record(Access::global_store, address, at);
  std::memcpy(static_cast<void*>(address), &value, sizeof value);
}

inline void add_global(int64_t* address, int64_t value, const Location& at = Location::current()) {
  record(Access::global_atomic, address, at);
  *address += value;
}

inline uint32_t fetch_add_global(uint32_t* address, uint32_t value,
                                 const Location& at = Location::current()) {
  record(Access::global_atomic, address, at);
  const uint32_t before = *address;
  *address += value;
  return before;
}

inline void publish_global(uint64_t* address, uint64_t value, const Location& at = Location::current()) {
  record(Access::global_atomic, address, at);
  *address = value;
}

inline uint64_t peek_global(const uint64_t* address, const Location& at = Location::current()) {
  record(Access::global_atomic, address, at);
  return *address;
}

template <class T>
T load_shared(const T* address, const Location& at = Location::current()) {
  record(Access::shared, address, at);
  return *address;
}

template <class T>
void store_shared(T* address, T value, const Location& at = Location::current()) {
  record(Access::shared, address, at);
  *address = value;
}

inline void add_shared(uint32_t* address, uint32_t value, const Location& at = Location::current()) {
  record(Access::shared, address, at);
  *address += value;
}

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(block->shared.get());
}

// The name of a kernel as a demangler prints it, without its parameters: encode<2, true>.
template <auto kernel>
std::string kernel_name() {
  const std::string text = __PRETTY_FUNCTION__;  // "... [with auto kernel = ns::{anonymous}::name<...>; ...]"
  const size_t begin = text.find("kernel = ") + 9, end = text.find_first_of(";]", begin);
  const std::string full = text.substr(begin, end - begin);
  const size_t arguments = std::min(full.find('<'), full.size());
  const size_t scope = full.rfind("::", arguments);
  return scope == std::string::npos ? full : full.substr(scope + 2);
}

template <auto kernel, class... Arguments>
int launch(int64_t blocks, int threads, size_t shared_bytes, void* /*stream*/, Arguments... arguments) {
  if (blocks < 1 || threads < 1 || threads > 1024 || shared_bytes > kSharedLimit)
    throw std::runtime_error(kernel_name<kernel>() + ": not a shape that a device would launch");
  counters.open_kernel(kernel_name<kernel>(), threads, shared_bytes);
  Block running;
  running.threads.x = static_cast<unsigned>(threads);
  running.grid.x = static_cast<unsigned>(blocks);
  running.shared.reset(::operator new(shared_bytes, std::align_val_t(128)));
  running.shared_bytes = shared_bytes;
  running.body = [=] { kernel(arguments...); };
  running.thread = std::vector<Thread>(static_cast<size_t>(threads));
  running.slot.resize((running.thread.size() + kLanes - 1) / kLanes * kLanes);
  for (unsigned k = 0; k < running.thread.size(); ++k) {
    running.thread[k].linear = k;
    running.thread[k].index = {k, 0, 0};
    running.thread[k].stack = stack(k);
  }
  for (int64_t k = 0; k < blocks; ++k) {
    running.index = {static_cast<unsigned>(settings.reverse_blocks ? blocks - 1 - k : k), 0, 0};
    run_block(running);
  }
  return 0;
}

template <auto kernel>
int resident_blocks(int /*threads*/, size_t /*shared_bytes*/, int64_t* blocks) {
  *blocks = settings.resident_blocks;
  return 0;
}

inline int fill_zero(void* memory, size_t bytes, void* /*stream*/) {
  std::memset(memory, 0, bytes);
  return 0;
}

// Byte k of the result is byte (selector >> 4 k) & 7 of the eight bytes (high:low).
inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int k = 0; k < 4; ++k)
    result |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * k & 7) & 0xff) << 8 * k;
  return result;
}

inline int bit_length(uint32_t value) { return value == 0 ? 0 : 32 - __builtin_clz(value); }

inline int bit_count(uint32_t value) { return __builtin_popcount(value); }

// The low half of (high:low) >> (shift & 31).
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

}  // namespace graftwork::simt
