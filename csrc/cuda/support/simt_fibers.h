// The host world of simt.h: blocks run one after another, each CUDA thread as a fiber on one OS thread.
//
// A warp runs until all of its lanes wait. At a warp collective (deposit, meet, read, meet) the lanes of its
// mask meet; at __syncthreads all threads of the block. The schedule decides which warp and lane run next:
//   lockstep   every warp one step in turn; hides most missing barriers
//   forward    each warp as far as it gets before the next one: shows them
//   reverse    the same from the last warp and the last lane down
//   random     warps and lanes in the order of settings.seed
// A right kernel gives the same bits under all of them (atomics on floats excepted). When nothing can move,
// launch throws std::runtime_error that says who waits for whom. Dynamic shared memory is allocated to the
// byte and filled with 0xff (NaN, -1) for each block, so that AddressSanitizer sees overruns and tests see
// stale reads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/support/simt_context.h"
#include "cuda/support/simt_counters.h"

#define __global__
#define __device__
#define __launch_bounds__(...)
#define SIMT_DEVICE inline

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace graftwork::simt {

enum class Schedule { lockstep, forward, reverse, random };

struct Settings {
  Schedule schedule = Schedule::forward;
  unsigned seed = 0;
  bool reverse_blocks = false;
  int64_t resident_blocks =
      3;  // what resident_blocks() reports: few, so that small inputs loop in the kernel
};
inline Settings settings;

constexpr unsigned kLanes = 32;
constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kSharedLimit = 227 * 1024;  // the most that a block gets on any device so far

enum class State { ready, at_block_barrier, at_warp_barrier, returned };

struct Thread {
  Context context;
  char* stack = nullptr;
  dim3 index;
  unsigned linear = 0;
  State state = State::ready;
  unsigned mask = 0;  // whom it waits for at a warp barrier
};

struct FreeAligned {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(128)); }
};

// The block that runs now.
struct Block {
  dim3 index, threads, grid;
  std::vector<Thread> thread;
  std::vector<uint64_t> slot;  // one a thread: where warp collectives deposit
  std::unique_ptr<void, FreeAligned> shared;
  size_t shared_bytes = 0;
  std::function<void()> body;
  Context scheduler;
  Thread* current = nullptr;
  std::string failure;
};
inline Block* block = nullptr;

// Stack number k, made at its first use and kept for later launches.
inline char* stack(size_t k) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() <= k) stacks.emplace_back(new char[kStackBytes]);
  return stacks[k].get();
}

// ---- What a running thread does ----

inline void yield(State state) {
  Thread& me = *block->current;
  me.state = state;
  switch_context(me.context, block->scheduler);
}

// Ends the launch with std::runtime_error: a thread cannot throw across fibers.
[[noreturn]] inline void fail(const std::string& what) {
  block->failure = "thread " + std::to_string(block->current->linear) + " of block " +
                   std::to_string(block->index.x) + ": " + what;
  yield(State::returned);
  std::abort();
}

inline void wait_warp(unsigned mask) {
  block->current->mask = mask;
  yield(State::at_warp_barrier);
}

// Lanes of `mask` deposit a value each and meet; `read` sees the 32 deposits of the warp; they meet again.
template <class T, class Read>
auto collective(unsigned mask, T value, const Read& read) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const unsigned me = block->current->linear;
  if (!(mask >> me % kLanes & 1)) fail("it calls a warp collective whose mask leaves it out");
  uint64_t raw = 0;
  std::memcpy(&raw, &value, sizeof value);
  block->slot[me] = raw;
  wait_warp(mask);
  const auto result = read(&block->slot[me - me % kLanes]);
  wait_warp(mask);
  return result;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  return collective(mask, value, [source](const uint64_t* deposits) {
    T result;
    std::memcpy(&result, deposits + source, sizeof result);
    return result;
  });
}

inline void thread_main() {
  entered_context(block->scheduler);
  block->body();
  block->current->state = State::returned;
  switch_context(block->current->context, block->scheduler, /*last=*/true);
  std::abort();
}

// ---- The scheduler ----

class Scheduler {
 public:
  explicit Scheduler(Block& running)
      : block_(running),
        threads_(static_cast<unsigned>(running.thread.size())),
        warps_((threads_ + kLanes - 1) / kLanes),
        random_(settings.seed) {}

  void run() {
    unsigned warp = settings.schedule == Schedule::reverse ? warps_ - 1 : 0, idle = 0;
    while (returned_ < threads_) {
      const bool moved = run_lanes(warp) | open_warp_barriers(warp);
      idle = moved ? 0 : idle + 1;
      if (idle > warps_ && !open_block_barrier()) throw std::runtime_error(deadlock());
      if (idle > warps_) idle = 0;
      warp = next_warp(warp, moved);
    }
  }

 private:
  // Runs every ready lane of a warp up to its next wait.
  bool run_lanes(unsigned warp) {
    const unsigned first = warp * kLanes, count = std::min(kLanes, threads_ - first);
    std::vector<unsigned> order(count);
    for (unsigned k = 0; k < count; ++k)
      order[k] = first + (settings.schedule == Schedule::reverse ? count - 1 - k : k);
    if (settings.schedule == Schedule::random) std::shuffle(order.begin(), order.end(), random_);
    bool moved = false;
    for (const unsigned k : order) {
      Thread& thread = block_.thread[k];
      if (thread.state != State::ready) continue;
      moved = true;
      block_.current = &thread;
      switch_context(block_.scheduler, thread.context);
      if (!block_.failure.empty()) throw std::runtime_error(block_.failure);
      returned_ += thread.state == State::returned;
    }
    return moved;
  }

  // A warp barrier opens when every lane of its mask waits there with the same mask.
  bool open_warp_barriers(unsigned warp) {
    const unsigned first = warp * kLanes, count = std::min(kLanes, threads_ - first);
    bool opened = false;
    for (unsigned lane = 0; lane < count; ++lane) {
      if (block_.thread[first + lane].state != State::at_warp_barrier) continue;
      const unsigned mask = block_.thread[first + lane].mask;
      bool all = true;
      for (unsigned other = 0; other < kLanes; ++other)
        if (mask >> other & 1) all = all && other < count && waits(first + other, mask);
      if (!all) continue;
      opened = true;
      for (unsigned other = 0; other < count; ++other)
        if (mask >> other & 1) block_.thread[first + other].state = State::ready;
    }
    return opened;
  }

  bool waits(unsigned thread, unsigned mask) const {
    return block_.thread[thread].state == State::at_warp_barrier && block_.thread[thread].mask == mask;
  }

  bool open_block_barrier() {
    for (const Thread& thread : block_.thread)
      if (thread.state != State::at_block_barrier) return false;
    for (Thread& thread : block_.thread) thread.state = State::ready;
    return true;
  }

  unsigned next_warp(unsigned warp, bool moved) {
    switch (settings.schedule) {
      case Schedule::lockstep: return (warp + 1) % warps_;
      case Schedule::forward: return moved ? warp : (warp + 1) % warps_;
      case Schedule::reverse: return moved ? warp : (warp + warps_ - 1) % warps_;
      case Schedule::random: return moved ? static_cast<unsigned>(random_()) % warps_ : (warp + 1) % warps_;
    }
    return 0;
  }

  std::string deadlock() const {
    unsigned at_block = 0, at_warp = 0;
    for (const Thread& thread : block_.thread) {
      at_block += thread.state == State::at_block_barrier;
      at_warp += thread.state == State::at_warp_barrier;
    }
    char text[240];
    std::snprintf(
        text, sizeof text,
        "deadlock in block (%u,%u,%u): of %u threads %u wait at __syncthreads, %u wait for lanes of "
        "their warp mask, %u have returned",
        block_.index.x, block_.index.y, block_.index.z, threads_, at_block, at_warp, returned_);
    return text;
  }

  Block& block_;
  const unsigned threads_, warps_;
  std::mt19937 random_;
  unsigned returned_ = 0;
};

inline void run_block(Block& running) {
  block = &running;
  for (Thread& thread : running.thread) {
    thread.state = State::ready;
    prepare_context(thread.context, thread.stack, kStackBytes, thread_main);
  }
  std::memset(running.shared.get(), 0xff, running.shared_bytes);
  Scheduler(running).run();
  counters.close_block();
}

}  // namespace graftwork::simt
