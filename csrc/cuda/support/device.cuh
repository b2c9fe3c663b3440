// What the binding asks of the CUDA runtime.
#pragma once

namespace graftwork::cuda {

// Devices that this process can use; 0 where there is no driver.
int device_count();

// The message of an error code that a launcher returned.
const char* error_message(int error);

// The code for arguments that a launcher refuses.
constexpr int kInvalidArgument = 1;

}  // namespace graftwork::cuda
