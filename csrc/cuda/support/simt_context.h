// Switching between fibers: a few lines of assembly on x86-64, ucontext elsewhere (or with SIMT_UCONTEXT),
// about ten times slower. AddressSanitizer is told of every switch.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(SIMT_UCONTEXT)
// Pushes what the System V ABI says a call preserves, stores the stack pointer in *from, and returns on `to`.
extern "C" void graftwork_switch_stack(void** from, void* to);
asm(R"(
.text
.weak graftwork_switch_stack
.type graftwork_switch_stack,@function
graftwork_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size graftwork_switch_stack,.-graftwork_switch_stack
)");
#endif

namespace graftwork::simt {

struct Context {
#if defined(SIMT_UCONTEXT)
  ucontext_t saved;
#else
  void* stack_pointer = nullptr;
#endif
  const void* bottom = nullptr;  // of its stack, with its size: for AddressSanitizer
  size_t bytes = 0;
  void* fake_stack = nullptr;
};

// Leaves `from` and goes on with `to`; returns when something switches back. A context that is left for the
// last time never returns.
inline void switch_context(Context& from, Context& to, [[maybe_unused]] bool last = false) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
#if defined(SIMT_UCONTEXT)
  swapcontext(&from.saved, &to.saved);
#else
  graftwork_switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first thing that a new context does: completes the switch and learns the stack it came from.
inline void entered_context([[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.bytes);
#endif
}

// Makes `context` start `entry` on the given stack at the first switch to it. `entry` never returns.
inline void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  context.bottom = stack;
  context.bytes = bytes;
  context.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, bytes);  // what an earlier fiber left there
#endif
#if defined(SIMT_UCONTEXT)
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = stack;
  context.saved.uc_stack.ss_size = bytes;
  context.saved.uc_link = nullptr;
  makecontext(&context.saved, entry, 0);
#else
  constexpr int kSavedRegisters = 6;
  void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15});
  *--top = nullptr;  // where a return address would stand: `entry` finds the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int k = 0; k < kSavedRegisters; ++k) *--top = nullptr;
  context.stack_pointer = top;
#endif
}

}  // namespace graftwork::simt
