// Counts, for kernels run on the host, what their memory accesses would cost on a GPU.
//
// Accesses of the lanes of a warp form one group when they come from the same call site in the source and are
// the n-th of their lane there (n counts per lane within a block); the hardware would issue them together.
//   Global memory: sectors = distinct 32-byte sectors that a group touches; floor = what its distinct bytes
//   would fill if they lay together on a sector boundary. sectors / floor is 1 for a coalesced access.
//   Shared memory: passes = the most distinct 4-byte words that one of the 32 banks must deliver; accesses of
//   8 and 16 bytes go in half and quarter warps. floor = the passes of a conflict-free access. Atomics on
//   equal addresses count as one: the hardware merges increments by a constant.
// Limits: lanes that skip an iteration fall out of step with the others of their warp from there on, so count
// straight-line code and common loops only; caches are not modelled.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <source_location>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace graftwork::simt {

enum class Access { global_load, global_store, global_atomic, shared };
constexpr int kAccessKinds = 4;

// Accesses of one kind: how many groups, their cost (sectors or passes), and the least they could cost.
struct Cost {
  int64_t groups = 0, cost = 0, floor = 0;
};

struct KernelCounts {
  int threads = 0;
  size_t shared_bytes = 0;
  Cost cost[kAccessKinds];
};

class Counters {
 public:
  bool enabled = false;
  std::map<std::string, KernelCounts> kernels;

  void open_kernel(const std::string& name, int threads, size_t shared_bytes) {
    if (!enabled) return;
    kernel_ = &kernels[name];
    kernel_->threads = threads;
    kernel_->shared_bytes = shared_bytes;
  }

  void record(Access kind, unsigned thread, const void* address, size_t bytes,
              const std::source_location& at) {
    if (!enabled) return;
    const Site site{kind, at.file_name(), at.line(), at.column()};
    const unsigned ordinal = seen_[{site, thread}]++;
    groups_[{site, thread / 32, ordinal}].push_back(
        {thread % 32, reinterpret_cast<uintptr_t>(address), static_cast<unsigned>(bytes)});
  }

  void close_block() {
    if (!enabled) return;
    for (const auto& [key, group] : groups_) {
      const Access kind = std::get<0>(key).kind;
      const auto [cost, floor] = kind == Access::shared ? bank_passes(group) : sectors(group);
      Cost& total = kernel_->cost[static_cast<int>(kind)];
      total.groups += 1;
      total.cost += cost;
      total.floor += floor;
    }
    groups_.clear();
    seen_.clear();
  }

 private:
  struct Site {
    Access kind;
    const char* file;
    unsigned line, column;
    auto operator<=>(const Site&) const = default;
  };
  struct LaneAccess {
    unsigned lane;
    uintptr_t address;
    unsigned bytes;
  };
  using Group = std::vector<LaneAccess>;

  static constexpr unsigned kSectorBytes = 32, kBanks = 32, kBankBytes = 4;

  static std::pair<int64_t, int64_t> sectors(const Group& group) {
    std::set<uintptr_t> sectors, bytes;
    for (const LaneAccess& access : group)
      for (unsigned k = 0; k < access.bytes; ++k) {
        bytes.insert(access.address + k);
        sectors.insert((access.address + k) / kSectorBytes);
      }
    return {sectors.size(), (bytes.size() + kSectorBytes - 1) / kSectorBytes};
  }

  static std::pair<int64_t, int64_t> bank_passes(const Group& group) {
    const unsigned words_each = std::max(1u, group.front().bytes / kBankBytes);
    std::map<unsigned, std::set<uintptr_t>> phases;  // the words that one part of the warp asks for
    for (const LaneAccess& access : group)
      for (unsigned k = 0; k < words_each; ++k)
        phases[access.lane / (32 / words_each)].insert(access.address / kBankBytes + k);
    int64_t passes = 0, floor = 0;
    for (const auto& [phase, words] : phases) {
      std::map<uintptr_t, int64_t> demand;
      for (const uintptr_t word : words) ++demand[word % kBanks];
      int64_t most = 0;
      for (const auto& [bank, count] : demand) most = std::max(most, count);
      passes += most;
      floor += (static_cast<int64_t>(words.size()) + kBanks - 1) / kBanks;
    }
    return {passes, floor};
  }

  KernelCounts* kernel_ = nullptr;
  std::map<std::pair<Site, unsigned>, unsigned> seen_;
  std::map<std::tuple<Site, unsigned, unsigned>, Group> groups_;
};
inline Counters counters;

}  // namespace graftwork::simt
