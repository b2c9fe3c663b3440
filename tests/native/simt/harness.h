// What the host programs that run CUDA kernels through the SIMT shim share: buffers, inputs, schedules, checks.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "cuda/support/simt.h"

namespace harness {

namespace simt = graftwork::simt;

constexpr int64_t kSizes[] = {0, 1, 31, 33, 1000, 4097};

inline int failures = 0;

inline void check(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what.c_str());
  ++failures;
}

// Exactly as many bytes as asked for, `offset` bytes after a multiple of 256, filled with 0xff.
class Buffer {
 public:
  explicit Buffer(size_t bytes, size_t offset = 0) : bytes_(bytes), offset_(offset) {
    memory_.reset(static_cast<uint8_t*>(::operator new(bytes + offset, std::align_val_t(kAlignment))));
    std::memset(memory_.get(), 0xff, bytes + offset);
  }
  Buffer(const std::vector<uint8_t>& content, size_t offset) : Buffer(content.size(), offset) {
    if (!content.empty()) std::memcpy(data(), content.data(), content.size());
  }

  uint8_t* data() const { return memory_.get() + offset_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data());
  }
  std::vector<uint8_t> content() const { return {data(), data() + bytes_}; }

 private:
  static constexpr size_t kAlignment = 256;
  struct Free {
    void operator()(uint8_t* memory) const { ::operator delete(memory, std::align_val_t(kAlignment)); }
  };
  size_t bytes_, offset_;
  std::unique_ptr<uint8_t, Free> memory_;
};

// Words of a base and of its fine-tune: mostly small ordinal moves, one in eight a pair of any bits, and the
// patterns that break codecs (zeros, infinities, NaN, subnormals of the given exponent width) in all pairings.
struct Words {
  std::vector<uint64_t> base, tuned;
};

inline Words make_words(int64_t numel, int word_bytes, int exponent_bits, unsigned seed,
                        bool only_small = false) {
  const int bits = 8 * word_bytes, mantissa = bits - 1 - exponent_bits;
  const uint64_t all = bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1,
                 sign = uint64_t{1} << (bits - 1);
  const uint64_t infinity = sign - (uint64_t{1} << mantissa);
  const uint64_t special[] = {0,   sign, infinity, infinity | sign, infinity + 1,
                              all, 1,    sign + 1, infinity - 1};
  constexpr int kSpecials = sizeof special / sizeof *special;
  std::mt19937_64 random(seed);
  Words words;
  for (int64_t k = 0; k < numel; ++k) {
    // Exponents of weights spread over a few values below that of 1.
    uint64_t base = ((uint64_t{1} << (exponent_bits - 1)) - 2 - random() % 6) << mantissa;
    base = (base | (random() & ((uint64_t{1} << mantissa) - 1)) | (random() & sign)) & all;
    uint64_t tuned = (base + random() % 9 - 4) & all;
    if (random() % 3) tuned = base;
    if (!only_small && k % 8 == 7) base = random() & all, tuned = random() & all;
    if (!only_small && k % 8 == 5) base = special[k / 8 % kSpecials], tuned = special[k / 72 % kSpecials];
    words.base.push_back(base);
    words.tuned.push_back(tuned);
  }
  return words;
}

inline std::vector<uint8_t> pack(const std::vector<uint64_t>& words, int word_bytes) {
  std::vector<uint8_t> bytes(words.size() * word_bytes);
  for (size_t k = 0; k < words.size(); ++k) std::memcpy(&bytes[k * word_bytes], &words[k], word_bytes);
  return bytes;
}

// Calls run(name of the schedule) under each schedule.
inline void under_each_schedule(const std::function<void(const std::string&)>& run) {
  using simt::Schedule;
  const std::pair<const char*, simt::Settings> cases[] = {
      {"lockstep", {.schedule = Schedule::lockstep}},
      {"forward", {.schedule = Schedule::forward}},
      {"reverse", {.schedule = Schedule::reverse, .reverse_blocks = true, .resident_blocks = 2}},
      {"random", {.schedule = Schedule::random, .seed = 1}},
  };
  for (const auto& [name, settings] : cases) {
    simt::settings = settings;
    run(name);
  }
}

// What the counters saw, as one JSON object: kernel -> {threads, shared_bytes, kind: [groups, cost, floor]}.
inline void print_counters() {
  const char* const kinds[] = {"load", "store", "atomic", "shared"};
  std::printf("{");
  const char* comma = "";
  for (const auto& [name, kernel] : simt::counters.kernels) {
    std::printf("%s\n \"%s\": {\"threads\": %d, \"shared_bytes\": %zu", comma, name.c_str(), kernel.threads,
                kernel.shared_bytes);
    for (int k = 0; k < simt::kAccessKinds; ++k)
      std::printf(", \"%s\": [%lld, %lld, %lld]", kinds[k], static_cast<long long>(kernel.cost[k].groups),
                  static_cast<long long>(kernel.cost[k].cost), static_cast<long long>(kernel.cost[k].floor));
    std::printf("}");
    comma = ",";
  }
  std::printf("\n}\n");
}

// main of a program that either checks results under every schedule or counts accesses.
inline int run(int argc, char** argv, void (*check_all)(), void (*count_all)()) {
  if (argc > 1 && std::string(argv[1]) == "counters") {
    simt::counters.enabled = true;
    count_all();
    print_counters();
  } else {
    check_all();
    std::printf("%s\n", failures == 0 ? "all checks hold" : "some checks failed");
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace harness
