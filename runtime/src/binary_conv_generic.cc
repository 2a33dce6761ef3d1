// Plain C++: for processors that have no kernels of their own.
#include <cstring>

#include "binary_conv_run.h"

namespace surge {
namespace {

struct Generic {
  static constexpr int kPair = 1;
  static constexpr int kPixels = 4;
  static constexpr int kBlock = 8;

  template <int P>
  static void count(const uint8_t *const *windows, const Plan &plan,
                    const uint8_t *weights, int32_t *differing) {
    int32_t sums[P][kBlock] = {};
    const uint32_t *w = reinterpret_cast<const uint32_t*>(weights);
    for (int64_t run = 0; run < plan.run_count; ++run) {
      for (int64_t k = 0; k < plan.run_length; ++k, w += kBlock) {
        for (int p = 0; p < P; ++p) {
          uint32_t a;
          std::memcpy(&a, windows[p] + plan.runs[run] + 4 * k, 4);
          for (int i = 0; i < kBlock; ++i)
            sums[p][i] += __builtin_popcount(a ^ w[i]);
        }
      }
    }
    std::memcpy(differing, sums, sizeof(sums));
  }
};

inline void pack(const float *x, const float *start, int64_t channels,
                 uint8_t *units) {
  for (int64_t c = 0; c < channels; c += 32, units += 4) {
    uint32_t bits = 0;
    for (int64_t i = 0; i < std::min<int64_t>(32, channels - c); ++i)
      bits |= static_cast<uint32_t>(x[c + i] >= start[c + i]) << i;
    std::memcpy(units, &bits, 4);
  }
}

}  // namespace

extern const Kernels kGeneric = {
    "generic", 32,   4,     Generic::kBlock, 4 * Generic::kBlock,
    pack_row<pack>,      fill_words, nullptr, place_word, run<Generic>};

}  // namespace surge
