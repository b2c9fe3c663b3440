// The ISA levels of the CPU core and the one way in which every operation chooses among them.
//
// CMake compiles each operation once per level with GRAFTWORK_LEVEL set to the level's name. All code of a
// level lives in namespace graftwork::<level> and instantiates nothing from the standard library, so the
// linker can never give a narrow level a function that was compiled for a wider one.
#pragma once

#include <cstdint>

namespace graftwork {

enum class IsaLevel { baseline, avx2, avx512 };

// The widest level that the CPU and the operating system support, or the one that GRAFTWORK_SIMD names.
// Chosen at the first call. Throws std::invalid_argument for an unknown name or a level that the CPU lacks.
IsaLevel isa_level();

const char* isa_level_name(IsaLevel level);

}  // namespace graftwork

// GRAFTWORK_DISPATCH(name, (parameters), (arguments)): stands in namespace graftwork of the operation's
// source file, and defines the public graftwork::name, which calls name of the chosen level.
#ifndef GRAFTWORK_LEVEL_IS_baseline
#define GRAFTWORK_DISPATCH(name, parameters, arguments)
#elif defined(GRAFTWORK_X86_LEVELS)
#define GRAFTWORK_DISPATCH(name, parameters, arguments)         \
  namespace avx2 {                                              \
  void name parameters;                                         \
  }                                                             \
  namespace avx512 {                                            \
  void name parameters;                                         \
  }                                                             \
  void name parameters {                                        \
    switch (isa_level()) {                                      \
      case IsaLevel::avx512: return avx512::name arguments;     \
      case IsaLevel::avx2: return avx2::name arguments;         \
      case IsaLevel::baseline: return baseline::name arguments; \
    }                                                           \
  }
#else
#define GRAFTWORK_DISPATCH(name, parameters, arguments) \
  void name parameters { baseline::name arguments; }
#endif
