// Which kernels this processor runs.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "binary_conv.h"

namespace surge {

extern const Kernels kGeneric;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512;
#elif defined(__aarch64__)
extern const Kernels kNeon;
#endif

#if defined(__x86_64__)
namespace {

// Registers that the operating system keeps: bits of XCR0.
constexpr uint64_t kYmm = 0x6, kZmm = 0xe6;

struct Processor {
  bool avx2 = false, avx512 = false;

  Processor() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = (low & kYmm) == kYmm && (b & bit_AVX2);
    constexpr unsigned wanted =
        bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    avx512 = avx2 && (low & kZmm) == kZmm && (b & wanted) == wanted &&
             (c & bit_AVX512VPOPCNTDQ);
  }
};

}  // namespace
#endif

const Kernels *find_kernels(const char *name) {
#if defined(__x86_64__)
  static const Processor processor;
  if (!std::strcmp(name, "avx512") && processor.avx512) return &kAvx512;
  if (!std::strcmp(name, "avx2") && processor.avx2) return &kAvx2;
#elif defined(__aarch64__)
  if (!std::strcmp(name, "neon")) return &kNeon;
#endif
  return std::strcmp(name, "generic") ? nullptr : &kGeneric;
}

const Kernels &best_kernels() {
  if (const char *wanted = std::getenv("SURGE_ISA")) {
    if (const Kernels *found = find_kernels(wanted)) return *found;
    throw std::runtime_error(std::string("SURGE_ISA=") + wanted +
                             ": this processor, or this build, has no such "
                             "kernels; allowed are avx512, avx2, neon, "
                             "generic, as far as it has them");
  }
  for (const char *name : {"avx512", "avx2", "neon"})
    if (const Kernels *found = find_kernels(name)) return *found;
  return kGeneric;
}

}  // namespace surge

// The name of the kernels that are used; null if SURGE_ISA names others than
// the processor's.
extern "C" __attribute__((visibility("default"))) const char *surge_isa() {
  try {
    return surge::best_kernels().name;
  } catch (const std::exception &) {
    return nullptr;
  }
}
