// Denormal numbers, which a thread may treat as zeros to save time (torch.set_flush_denormal): code whose comparisons rely on
// them keeps them while it runs.
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
  // The register that controls floating-point arithmetic in this thread, and its bits for zeros in place of denormals.
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
