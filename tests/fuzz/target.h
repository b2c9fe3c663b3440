// What a native fuzz target is made of: the input as a stream of numbers, buffers whose every overrun stops the
// program, and the operation at each ISA level that was compiled in and that this processor has.
//
// A target is one file with LLVMFuzzerTestOneInput; native_program.py links it with the operation's objects and with
// libFuzzer, or, where there is no clang, with standalone_main.cpp.
#pragma once

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <type_traits>

#include "core/support/isa.h"

// Stops the program with a message: the fuzzer keeps the input.
#define REQUIRE(condition, ...)                                            \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fputc('\n', stderr);                                            \
      std::abort();                                                        \
    }                                                                      \
  } while (false)

namespace fuzz {

using Bytes = std::span<const uint8_t>;

// The fuzzer's bytes, read from the front; zeros follow them.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(data, size) {}

  uint8_t byte() {
    if (rest_.empty()) return 0;
    const uint8_t first = rest_.front();
    rest_ = rest_.subspan(1);
    return first;
  }

  uint32_t number(int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; ++i) value |= uint32_t{byte()} << (8 * i);
    return value;
  }

  Bytes take(size_t count) {
    const Bytes taken = rest_.first(std::min(count, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return taken;
  }

  bool empty() const { return rest_.empty(); }
  size_t left() const { return rest_.size(); }
  Bytes rest() const { return rest_; }

 private:
  Bytes rest_;
};

// A number that follows from its predecessor (splitmix64): the same words for the same input, everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  uint32_t below(uint64_t bound) { return static_cast<uint32_t>(next() % bound); }

 private:
  uint64_t state_;
};

// Room for one array, made once. resize() ends the array at a page that may not be touched, so that even code which
// the sanitizer does not watch (gathers) cannot pass the end; what lies before it is poisoned for the sanitizer.
class Buffer {
 public:
  explicit Buffer(size_t capacity) : room_((capacity + kPage - 1) / kPage * kPage) {
    void* const found =
        mmap(nullptr, room_ + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(found != MAP_FAILED, "no memory");
    end_ = static_cast<uint8_t*>(found) + room_;
    REQUIRE(mprotect(end_, kPage, PROT_NONE) == 0, "no guard page");
    ASAN_POISON_MEMORY_REGION(end_ - room_, room_);
  }

  // The array has `size` bytes from here on, filled with 0xA5: nothing of an earlier input is left in it.
  uint8_t* resize(size_t size) {
    REQUIRE(size <= room_, "a buffer of %zu bytes is too small for %zu", room_, size);
    ASAN_POISON_MEMORY_REGION(end_ - size_, size_);
    size_ = size;
    ASAN_UNPOISON_MEMORY_REGION(data(), size);
    if (size > 0) std::memset(data(), 0xA5, size);
    return data();
  }

  uint8_t* assign(Bytes bytes) {
    resize(bytes.size());
    if (!bytes.empty()) std::memcpy(data(), bytes.data(), bytes.size());
    return data();
  }

  uint8_t* data() const { return end_ - size_; }
  size_t size() const { return size_; }
  Bytes bytes() const { return {data(), size_}; }

 private:
  static constexpr size_t kPage = 4096;
  size_t room_, size_ = 0;
  uint8_t* end_;
};

inline bool equal(Bytes one, Bytes other) { return std::ranges::equal(one, other); }

enum class Level { baseline, avx2, avx512 };

inline bool is_available([[maybe_unused]] Level level) {
#ifdef GRAFTWORK_X86_LEVELS
  const bool v3 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return level == Level::baseline || (level == Level::avx2 ? v3 : v4);
#else
  return level == Level::baseline;
#endif
}

template <class Function>
struct AtLevel {
  const char* level;
  Function* call;
};

}  // namespace fuzz

namespace graftwork {

// The dispatching functions are linked too and ask for a level; the targets call each level by its name.
IsaLevel isa_level() { return IsaLevel::baseline; }

}  // namespace graftwork

// FUZZ_AT_LEVELS(name) defines fuzz::name(): graftwork::name at every level that this processor can run.
#ifdef GRAFTWORK_X86_LEVELS
#define FUZZ_DECLARE_WIDER(name)         \
  namespace graftwork::avx2 {            \
  extern decltype(graftwork::name) name; \
  }                                      \
  namespace graftwork::avx512 {          \
  extern decltype(graftwork::name) name; \
  }
#define FUZZ_WIDER(name) {"avx2", &graftwork::avx2::name}, {"avx512", &graftwork::avx512::name},
#else
#define FUZZ_DECLARE_WIDER(name)
#define FUZZ_WIDER(name)
#endif
#define FUZZ_AT_LEVELS(name)                                                                              \
  namespace graftwork::baseline {                                                                         \
  extern decltype(graftwork::name) name;                                                                  \
  }                                                                                                       \
  FUZZ_DECLARE_WIDER(name)                                                                                \
  namespace fuzz {                                                                                        \
  inline std::span<const AtLevel<decltype(graftwork::name)>> name() {                                     \
    static const AtLevel<decltype(graftwork::name)> levels[] = {{"baseline", &graftwork::baseline::name}, \
                                                                FUZZ_WIDER(name)};                        \
    static const size_t available = is_available(Level::avx512) ? 3 : is_available(Level::avx2) ? 2 : 1;  \
    return std::span(levels).first(available);                                                            \
  }                                                                                                       \
  }
