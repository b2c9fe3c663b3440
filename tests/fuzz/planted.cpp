// Mistakes that a fuzz run must find: the test of the tests. The first byte of the input chooses one.
#include "target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Buffer buffer(64);
  fuzz::Input input(data, size);
  buffer.resize(13);
  volatile uint8_t* const bytes = buffer.data();
  volatile int shift = 40;
  switch (input.byte()) {
    case 'a': bytes[13] = 1; break;
    case 'b': bytes[-16] = 1; break;
    case 'c': REQUIRE(size == 0, "as planted"); break;
    case 'd': bytes[0] = static_cast<uint8_t>(1 << shift); break;
    case 'e':
      while (bytes[0] != 0) {
      }
      break;
    default: break;
  }
  return 0;
}
