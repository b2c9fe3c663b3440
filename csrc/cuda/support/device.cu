#include "cuda/support/device.cuh"

#include <cuda_runtime.h>

namespace graftwork::cuda {

static_assert(kInvalidArgument == cudaErrorInvalidValue);

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

const char* error_message(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace graftwork::cuda
