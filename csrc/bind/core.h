// How a function of the CPU core becomes a function of the module: pointers and enumerations are Python
// integers, the interpreter lock is released, and an exception's message starts with the operation's name.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace graftwork {

// What Python passes for an argument: tensor.data_ptr() for a pointer, a number for an enumeration.
template <class T>
using FromPython =
    std::conditional_t<std::is_pointer_v<T>, std::uintptr_t, std::conditional_t<std::is_enum_v<T>, int, T>>;

template <class T>
T to_core(FromPython<T> value) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(value);
  } else {
    return static_cast<T>(value);
  }
}

template <auto function, class... Args>
void bind_as(pybind11::module_& module, const char* name, void (*)(Args...)) {
  module.def(name, [name](FromPython<Args>... args) {
    pybind11::gil_scoped_release unlocked;
    try {
      function(to_core<Args>(args)...);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string(name) + ": " + error.what());
    }
  });
}

template <auto function>
void bind(pybind11::module_& module, const char* name) {
  bind_as<function>(module, name, function);
}

}  // namespace graftwork
