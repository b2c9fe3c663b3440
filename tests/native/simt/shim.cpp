// The shim itself: what it must run right, and bugs planted in kernels that it must show. Each argument names
// one experiment; test_simt.py knows what it should print.
#include <exception>
#include <map>
#include <numeric>

#include "harness.h"

namespace {

namespace simt = graftwork::simt;
using harness::Buffer;

// Threads write their own cell and read the mirrored one: another warp's.
template <bool kBarrier>
__global__ void mirror(const int* in, int* out) {
  int* const cells = simt::dynamic_shared<int>();
  simt::store_shared(cells + threadIdx.x, simt::load_global(in + threadIdx.x));
  if (kBarrier) __syncthreads();
  simt::store_global(out + threadIdx.x, simt::load_shared(cells + (blockDim.x - 1 - threadIdx.x)));
}

template <bool kBarrier>
void run_mirror() {
  constexpr int kThreads = 96;
  std::vector<int> in(kThreads);
  std::iota(in.begin(), in.end(), 100);
  harness::under_each_schedule([&](const std::string& schedule) {
    const Buffer out(kThreads * sizeof(int));
    simt::launch<mirror<kBarrier>>(1, kThreads, kThreads * sizeof(int), nullptr, in.data(), out.as<int>());
    const bool right = std::equal(in.rbegin(), in.rend(), out.as<int>());
    std::printf("%s %s\n", schedule.c_str(), right ? "right" : "wrong");
  });
}

__global__ void diverge() {
  if (threadIdx.x < 7) return;
  __syncthreads();
}

__global__ void leave_out() { __ballot_sync(0xffff0000u, 1); }

__global__ void half_warp() {
  if (threadIdx.x % 32 < 16) __shfl_sync(0xffffffffu, 1, 0);
}

__global__ void overrun_global(int* out) { simt::store_global(out + threadIdx.x, 1); }

__global__ void overrun_shared() { simt::store_shared(simt::dynamic_shared<int>() + threadIdx.x, 1); }

__global__ void misalign(const uint64_t* in, uint64_t* out) {
  simt::store_global(out, simt::load_global(in));
}

// Each lane reads `stride` words apart: 1 is coalesced and free of conflicts, 32 the worst of both.
template <int kStride>
__global__ void read_strided(const int* in, int* out) {
  int* const cells = simt::dynamic_shared<int>();
  const int value = simt::load_global(in + threadIdx.x * kStride);
  simt::store_shared(cells + threadIdx.x * kStride, value);
  simt::store_global(out + threadIdx.x, value);
}

template <int kStride>
void count_strided() {
  constexpr int kThreads = 32;
  const Buffer in(kThreads * kStride * sizeof(int)), out(kThreads * sizeof(int));
  simt::counters.enabled = true;
  simt::launch<read_strided<kStride>>(1, kThreads, kThreads * kStride * sizeof(int), nullptr, in.as<int>(),
                                      out.as<int>());
  harness::print_counters();
}

// Blocks that depend on their order: each adds its number to the last one's sum, doubled.
__global__ void chain(int* sum) {
  simt::store_global(sum, 2 * simt::load_global(sum) + static_cast<int>(blockIdx.x));
}

void run_chain() {
  for (const bool reverse : {false, true}) {
    simt::settings.reverse_blocks = reverse;
    int sum = 0;
    simt::launch<chain>(3, 1, 0, nullptr, &sum);
    std::printf("%d\n", sum);
  }
}

__global__ void read_stale(unsigned* out) {
  simt::store_global(out, simt::load_shared(simt::dynamic_shared<unsigned>()));
}

// Every collective of the dialect, on values whose answers a line of arithmetic gives.
__global__ void collect(unsigned* out) {
  const unsigned lane = threadIdx.x % 32, all = 0xffffffffu;
  unsigned* const mine = out + 8 * threadIdx.x;
  simt::store_global(mine + 0, __shfl_sync(all, threadIdx.x, 3));
  simt::store_global(mine + 1, __shfl_xor_sync(all, threadIdx.x, 16));
  simt::store_global(mine + 2, __shfl_down_sync(all, threadIdx.x, 8));
  simt::store_global(mine + 3, __ballot_sync(all, lane % 3 == 0));
  simt::store_global(mine + 4, __match_any_sync(all, lane / 4));
  __syncwarp();
  simt::store_global(mine + 6, __shfl_up_sync(all, threadIdx.x, 8));
  simt::store_global(mine + 7, __reduce_add_sync(all, threadIdx.x));
  simt::store_global(mine + 5, lane < 16 ? __ballot_sync(0xffffu, 1) : __ballot_sync(0xffff0000u, lane > 20));
}

void run_collect() {
  constexpr unsigned kThreads = 64;
  unsigned third = 0;
  for (unsigned lane = 0; lane < 32; lane += 3) third |= 1u << lane;
  harness::under_each_schedule([&](const std::string& schedule) {
    const Buffer out(8 * kThreads * sizeof(unsigned));
    simt::launch<collect>(1, kThreads, 0, nullptr, out.as<unsigned>());
    for (unsigned k = 0; k < kThreads; ++k) {
      const unsigned lane = k % 32;
      const unsigned wanted[] = {k - lane + 3,          k ^ 16,
                                 lane < 24 ? k + 8 : k, third,
                                 0xfu << lane / 4 * 4,  lane < 16 ? 0xffffu : 0xffe00000u,
                                 lane < 8 ? k : k - 8,  32 * (k - lane) + 31 * 16};
      for (int of = 0; of < 8; ++of)
        harness::check(
            out.as<unsigned>()[8 * k + of] == wanted[of],
            "collective " + std::to_string(of) + " of thread " + std::to_string(k) + ", " + schedule);
    }
  });
  if (harness::failures == 0) std::printf("right\n");
}

void run(const std::string& experiment) {
  const Buffer words(8 * sizeof(int), 4);
  const std::map<std::string, void (*)(const Buffer&)> experiments = {
      {"barrier", [](const Buffer&) { run_mirror<true>(); }},
      {"missing_barrier", [](const Buffer&) { run_mirror<false>(); }},
      {"divergent_barrier", [](const Buffer&) { simt::launch<diverge>(2, 64, 0, nullptr); }},
      {"mask_without_caller", [](const Buffer&) { simt::launch<leave_out>(1, 32, 0, nullptr); }},
      {"lanes_never_come", [](const Buffer&) { simt::launch<half_warp>(1, 32, 0, nullptr); }},
      {"overrun_global",
       [](const Buffer& out) { simt::launch<overrun_global>(1, 9, 0, nullptr, out.as<int>()); }},
      {"overrun_shared", [](const Buffer&) { simt::launch<overrun_shared>(1, 9, 8 * sizeof(int), nullptr); }},
      {"misaligned",
       [](const Buffer& at) {
         simt::launch<misalign>(1, 1, 0, nullptr, static_cast<const uint64_t*>(at.as<uint64_t>()),
                                at.as<uint64_t>());
       }},
      {"too_much_shared", [](const Buffer&) { simt::launch<diverge>(1, 32, 300 * 1024, nullptr); }},
      {"coalesced", [](const Buffer&) { count_strided<1>(); }},
      {"strided", [](const Buffer&) { count_strided<32>(); }},
      {"padded", [](const Buffer&) { count_strided<33>(); }},
      {"block_order", [](const Buffer&) { run_chain(); }},
      {"stale_shared",
       [](const Buffer& out) {
         simt::launch<read_stale>(1, 1, 4, nullptr, out.as<unsigned>());
         std::printf("%x\n", *out.as<unsigned>());
       }},
      {"collectives", [](const Buffer&) { run_collect(); }},
  };
  experiments.at(experiment)(words);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 1) run(argv[1]);
  } catch (const std::exception& error) {
    std::printf("caught: %s\n", error.what());
  }
  return harness::failures == 0 ? 0 : 1;
}
