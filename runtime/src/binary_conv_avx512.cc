// AVX-512 with VPOPCNTDQ: exclusive or, count, add, 32 channels of sixteen
// outputs at a time.
#include <immintrin.h>

#include <cstring>

#include "binary_conv_run.h"

namespace surge {
namespace {

struct Avx512 {
  static constexpr int kPair = 1;
  static constexpr int kPixels = 8;
  static constexpr int kVectors = 2;
  static constexpr int kBlock = 16 * kVectors;

  template <int P>
  static void count(const uint8_t *const *windows, const Plan &plan,
                    const uint8_t *weights, int32_t *differing) {
    __m512i sums[P][kVectors];
#pragma clang loop unroll(full)
    for (int p = 0; p < P; ++p)
#pragma clang loop unroll(full)
      for (int v = 0; v < kVectors; ++v) sums[p][v] = _mm512_setzero_si512();
    for (int64_t run = 0; run < plan.run_count; ++run) {
      const uint8_t *window[P];
#pragma clang loop unroll(full)
      for (int p = 0; p < P; ++p) window[p] = windows[p] + plan.runs[run];
      for (int64_t k = 0; k < plan.run_length; ++k) {
        __m512i w[kVectors];
#pragma clang loop unroll(full)
        for (int v = 0; v < kVectors; ++v)
          w[v] = _mm512_load_si512(weights + 64 * v);
        weights += 64 * kVectors;
#pragma clang loop unroll(full)
        for (int p = 0; p < P; ++p) {
          int32_t word;
          std::memcpy(&word, window[p] + 4 * k, 4);
          const __m512i a = _mm512_set1_epi32(word);
#pragma clang loop unroll(full)
          for (int v = 0; v < kVectors; ++v)
            sums[p][v] = _mm512_add_epi32(
                sums[p][v], _mm512_popcnt_epi32(_mm512_xor_si512(a, w[v])));
        }
      }
    }
#pragma clang loop unroll(full)
    for (int p = 0; p < P; ++p)
#pragma clang loop unroll(full)
      for (int v = 0; v < kVectors; ++v)
        _mm512_store_si512(differing + p * kBlock + 16 * v, sums[p][v]);
  }
};

inline void pack(const float *x, const float *start, int64_t channels,
                 uint8_t *units) {
  int64_t c = 0;
  for (; c + 32 <= channels; c += 32, units += 4) {
    const uint32_t low = _mm512_cmp_ps_mask(
        _mm512_loadu_ps(x + c), _mm512_loadu_ps(start + c), _CMP_GE_OQ);
    const uint32_t high =
        _mm512_cmp_ps_mask(_mm512_loadu_ps(x + c + 16),
                           _mm512_loadu_ps(start + c + 16), _CMP_GE_OQ);
    const uint32_t bits = low | high << 16;
    std::memcpy(units, &bits, 4);
  }
  if (c < channels) {
    uint32_t bits = 0;
    for (int64_t i = 0; c + i < channels; ++i)
      bits |= static_cast<uint32_t>(x[c + i] >= start[c + i]) << i;
    std::memcpy(units, &bits, 4);
  }
}

}  // namespace

extern const Kernels kAvx512 = {
    "avx512", 32,   4,     Avx512::kBlock, 4 * Avx512::kBlock,
    pack_row<pack>, fill_words, nullptr, place_word, run<Avx512>};

}  // namespace surge
