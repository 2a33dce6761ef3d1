// AVX2, which cannot count bits: four bits of an activation choose a table of
// sixteen counts, and four bits of a weight look the count up (VPSHUFB), for 32
// outputs at a time.
#include <immintrin.h>

#include <cstring>

#include "binary_conv_run.h"

namespace surge {
namespace {

// Rows of kCounts are 16 bytes; an activation's unit is twice the row's
// number, which an address multiplies by 8.
struct Tables {
  alignas(64) uint8_t counts[16][16];
  constexpr Tables() : counts() {
    for (int a = 0; a < 16; ++a)
      for (int w = 0; w < 16; ++w)
        counts[a][w] = (0x4332322132212110u >> 4 * (a ^ w)) & 15;
  }
};
constexpr Tables kTables;

// Adds that cannot overflow 8 bits, each of at most 4, and 16 bits.
constexpr int64_t kByteSteps = 63;
constexpr int64_t kWordSteps = 65535 / 4 / kByteSteps * kByteSteps;

struct Avx2 {
  static constexpr int kPixels = 6;
  static constexpr int kVectors = 2;
  static constexpr int kBlock = 32 * kVectors;

  template <int P>
  static void count(const uint8_t *const *windows, const Plan &plan,
                    const uint8_t *weights, int32_t *differing) {
    // Even and odd bytes: of 16 outputs each.
    __m256i words[P][kVectors][2] = {};
    const __m256i low = _mm256_set1_epi16(0xff);
    const uint8_t *const tables = &kTables.counts[0][0];
    int64_t steps = 0;
    bool first = true;
    for (int64_t run = 0; run < plan.run_count; ++run) {
      const uint8_t *window[P];
#pragma clang loop unroll(full)
      for (int p = 0; p < P; ++p) window[p] = windows[p] + plan.runs[run];
      for (int64_t begin = 0; begin < plan.run_length; begin += kByteSteps) {
        const int64_t length = std::min(kByteSteps, plan.run_length - begin);
        __m256i sums[P][kVectors];
#pragma clang loop unroll(full)
        for (int p = 0; p < P; ++p)
#pragma clang loop unroll(full)
          for (int v = 0; v < kVectors; ++v)
            sums[p][v] = _mm256_setzero_si256();
        for (int64_t k = begin; k < begin + length; ++k) {
          __m256i w[kVectors];
#pragma clang loop unroll(full)
          for (int v = 0; v < kVectors; ++v)
            w[v] = _mm256_load_si256(
                reinterpret_cast<const __m256i*>(weights + 32 * v));
          weights += 32 * kVectors;
#pragma clang loop unroll(full)
          for (int p = 0; p < P; ++p) {
            const __m256i table = _mm256_broadcastsi128_si256(
                _mm_load_si128(reinterpret_cast<const __m128i*>(
                    tables + 8 * static_cast<int64_t>(window[p][k]))));
#pragma clang loop unroll(full)
            for (int v = 0; v < kVectors; ++v)
              sums[p][v] = _mm256_add_epi8(
                  sums[p][v], _mm256_shuffle_epi8(table, w[v]));
          }
        }
#pragma clang loop unroll(full)
        for (int p = 0; p < P; ++p)
#pragma clang loop unroll(full)
          for (int v = 0; v < kVectors; ++v) {
            words[p][v][0] = _mm256_add_epi16(
                words[p][v][0], _mm256_and_si256(sums[p][v], low));
            words[p][v][1] = _mm256_add_epi16(
                words[p][v][1], _mm256_srli_epi16(sums[p][v], 8));
          }
        steps += kByteSteps;
        if (steps > kWordSteps - kByteSteps) {
          widen(&words[0][0][0], P, first, differing);
          steps = 0;
          first = false;
        }
      }
    }
    widen(&words[0][0][0], P, first, differing);
  }

  // Writes 16-bit sums, or adds them where they are not the first; clears
  // them.
  static void widen(__m256i *words, int pixels, bool first,
                    int32_t *differing) {
    for (int i = 0; i < pixels * kVectors * 2; ++i) {
      __m256i *to = reinterpret_cast<__m256i *>(differing + 16 * i);
      __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(words[i]));
      __m256i high =
          _mm256_cvtepu16_epi32(_mm256_extracti128_si256(words[i], 1));
      if (!first) {
        low = _mm256_add_epi32(low, to[0]);
        high = _mm256_add_epi32(high, to[1]);
      }
      to[0] = low;
      to[1] = high;
      words[i] = _mm256_setzero_si256();
    }
  }
};

uint16_t units_of(int bits) {
  return static_cast<uint16_t>((bits & 15) << 1 | (bits >> 4) << 9);
}

inline void pack(const float *x, const float *start, int64_t channels,
                 uint8_t *units) {
  int64_t c = 0;
  for (; c + 8 <= channels; c += 8, units += 2) {
    const uint16_t pair = units_of(_mm256_movemask_ps(
        _mm256_cmp_ps(_mm256_loadu_ps(x + c), _mm256_loadu_ps(start + c),
                      _CMP_GE_OQ)));
    std::memcpy(units, &pair, 2);
  }
  for (; c < channels; c += 4, ++units) {
    *units = 0;
    for (int64_t i = 0; i < std::min<int64_t>(4, channels - c); ++i)
      *units |= (x[c + i] >= start[c + i]) << (i + 1);
  }
}

void fill(bool positive, int64_t channels, uint8_t *units) {
  for (int64_t c = 0; c < channels; c += 4, ++units)
    *units =
        positive ? ((1 << std::min<int64_t>(4, channels - c)) - 1) << 1 : 0;
}

// Output i of 32 is byte 2 i, or 2 (i - 16) + 1: as sums are widened.
void place(uint32_t bits, int lane, uint8_t *unit) {
  const int vector = lane / 32, i = lane % 32;
  unit[32 * vector + 2 * (i % 16) + i / 16] = bits;
}

}  // namespace

extern const Kernels kAvx2 = {
    "avx2", 4, 1, Avx2::kBlock, Avx2::kBlock, pack_row<pack>, fill, place, run<Avx2>};

}  // namespace surge
