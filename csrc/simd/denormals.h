// Keeps denormal numbers while it lives. A thread may flush them to zero to save time (torch.set_flush_denormal), but
// some comparisons rely on them.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace bcnet_fast {

class KeepDenormals {
 public:
  KeepDenormals() : before_(control()) { set_control(before_ & ~kFlush); }
  ~KeepDenormals() { set_control(before_); }
  KeepDenormals(const KeepDenormals&) = delete;
  KeepDenormals& operator=(const KeepDenormals&) = delete;

 private:
  // The thread's floating-point control register, and its bits that flush denormals to zero.
#if defined(__x86_64__) || defined(_M_X64)
  static constexpr std::uint64_t kFlush = 0x8040;  // of results, of inputs
  static std::uint64_t control() { return _mm_getcsr(); }
  static void set_control(std::uint64_t bits) { _mm_setcsr(static_cast<unsigned>(bits)); }
#elif defined(__GNUC__) && defined(__aarch64__)
  static constexpr std::uint64_t kFlush = std::uint64_t{1} << 24;
  static std::uint64_t control() {
    std::uint64_t bits;
    asm volatile("mrs %0, fpcr" : "=r"(bits));
    return bits;
  }
  static void set_control(std::uint64_t bits) { asm volatile("msr fpcr, %0" : : "r"(bits)); }
#else
  static constexpr std::uint64_t kFlush = 0;
  static std::uint64_t control() { return 0; }
  static void set_control(std::uint64_t) {}
#endif

  const std::uint64_t before_;
};

}  // namespace bcnet_fast
