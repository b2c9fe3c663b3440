// The dialect that our CUDA kernels are written in: one header, two worlds.
//
// nvcc: every name below is a plain CUDA access or call; nothing is added.
//
// Host compiler: simt_fibers.h runs each CUDA thread as a fiber under a chosen schedule, simt_counters.h
// counts memory sectors and shared-memory bank conflicts, and simt_device_api.h gives both the names that
// kernels use. Tests include a .cu file as C++.
//
// A kernel
//   - is launched by launch<kernel>(blocks, threads, shared_bytes, stream, arguments...), never by <<<>>>;
//   - reaches memory through load_global, store_global, add_global, load_shared, store_shared, add_shared;
//   - speaks to other blocks through fetch_add_global, publish_global and peek_global;
//   - has shared memory only from dynamic_shared<T>(); - may use threadIdx, blockIdx, blockDim, gridDim,
//   __syncthreads, __syncwarp, __shfl_sync, __shfl_xor_sync,
//     __shfl_up_sync, __shfl_down_sync, __ballot_sync, __match_any_sync and __reduce_add_sync; __fadd_rn,
//     __fsub_rn, __fmul_rn, __fdiv_rn and __fsqrt_rn; no cooperative groups, no inline PTX.
//
// What the host world cannot show: time, occupancy, tensor cores, cp.async, TMA, clusters, grid-wide
// barriers. Blocks run one after another (settings.reverse_blocks turns their order round), so races
// between blocks and missing device-scope fences stay hidden, and atomics happen in one order of many.
// Lanes of a warp are switched at barriers and warp collectives only. A thread that has returned never
// arrives at a barrier, which is stricter than the hardware since Volta. Local arrays never spill; the
// register gate (bench/ptxas.py) looks after that.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define SIMT_DEVICE __device__ __forceinline__

namespace graftwork::simt {

// The type in which the hardware moves kBytes in one access.
template <size_t kBytes>
struct Transfer {};
template <>
struct Transfer<1> {
  using Type = uint8_t;
};
template <>
struct Transfer<2> {
  using Type = uint16_t;
};
template <>
struct Transfer<4> {
  using Type = uint32_t;
};
template <>
struct Transfer<8> {
  using Type = uint2;
};
template <>
struct Transfer<16> {
  using Type = uint4;
};

template <class T>
SIMT_DEVICE T load_global(const T* address) {
  using Raw = typename Transfer<sizeof(T)>::Type;
  const Raw raw = *reinterpret_cast<const Raw*>(address);
  T value;
  memcpy(&value, &raw, sizeof value);
  return value;
}

template <class T>
SIMT_DEVICE void store_global(T* address, const T& value) {
  using Raw = typename Transfer<sizeof(T)>::Type;
  Raw raw;
  memcpy(&raw, &value, sizeof raw);
  *reinterpret_cast<Raw*>(address) = raw;
}

SIMT_DEVICE void add_global(int64_t* address, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
}

// Adds to a number that blocks share; returns what it was.
SIMT_DEVICE uint32_t fetch_add_global(uint32_t* address, uint32_t value) { return atomicAdd(address, value); }

// One word from block to block: a reader sees either what was there before or all of it. Orders nothing else.
SIMT_DEVICE void publish_global(uint64_t* address, uint64_t value) {
  *reinterpret_cast<volatile unsigned long long*>(address) = value;
}

SIMT_DEVICE uint64_t peek_global(const uint64_t* address) {
  return *reinterpret_cast<const volatile unsigned long long*>(address);
}

template <class T>
SIMT_DEVICE T load_shared(const T* address) {
  return *address;
}

template <class T>
SIMT_DEVICE void store_shared(T* address, T value) {
  *address = value;
}

SIMT_DEVICE void add_shared(uint32_t* address, uint32_t value) { atomicAdd(address, value); }

template <class T>
SIMT_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  return reinterpret_cast<T*>(shared_memory);
}

constexpr size_t kSharedWithoutConsent = 48 * 1024;  // a kernel must opt in to more

// Starts a kernel on `stream`; returns a cudaError_t.
template <auto kernel, class... Arguments>
int launch(int64_t blocks, int threads, size_t shared_bytes, void* stream, Arguments... arguments) {
  if (shared_bytes > kSharedWithoutConsent) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(
      arguments...);
  return cudaGetLastError();
}

// How many blocks of the kernel the current device holds at once; returns a cudaError_t.
template <auto kernel>
int resident_blocks(int threads, size_t shared_bytes, int64_t* blocks) {
  int device = 0, processors = 0, each = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess && shared_bytes > kSharedWithoutConsent)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes);
  *blocks = static_cast<int64_t>(processors) * each;
  return error;
}

// Queues the zeroing of device memory; returns a cudaError_t.
inline int fill_zero(void* memory, size_t bytes, void* stream) {
  return cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream));
}

SIMT_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

SIMT_DEVICE int bit_length(uint32_t value) { return 32 - __clz(static_cast<int>(value)); }

SIMT_DEVICE int bit_count(uint32_t value) { return __popc(value); }

SIMT_DEVICE uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
  return __funnelshift_r(low, high, shift);
}

}  // namespace graftwork::simt

#else
#include "cuda/support/simt_device_api.h"
#endif
