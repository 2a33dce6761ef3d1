// AVX2, which cannot count bits: four bits of an activation choose a table of
// sixteen counts, and four bits of a weight look the count up (VPSHUFB), for 32
// outputs at a time. A count has three bits, so a byte has room for those of
// two neighbouring pixels, which share a table and the lookup.
#include <immintrin.h>

#include <cstring>

#include "binary_conv_run.h"

namespace surge {
namespace {

// Row a + 16 b: counts of bits that differ from four bits a in the lower half
// of a byte, of those that differ from b in the upper half.
struct Tables {
  alignas(64) uint8_t counts[256][16];
  constexpr Tables() : counts() {
    for (int row = 0; row < 256; ++row)
      for (int w = 0; w < 16; ++w)
        counts[row][w] = count(row % 16 ^ w) | count(row / 16 ^ w) << 4;
  }
  static constexpr int count(int bits) {
    return (bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1) + (bits >> 3);
  }
};
constexpr Tables kTables;

// Counts of up to 4 that can be added in half a byte, in a byte, and in 16 bits.
constexpr int64_t kHalfSteps = 3;
constexpr int64_t kByteSteps = 63;
constexpr int64_t kWordSteps = 65535 / 4 / kByteSteps * kByteSteps;

struct Avx2 {
  static constexpr int kPair = 2;
  static constexpr int kPixels = 4;
  static constexpr int kVectors = 2;
  static constexpr int kBlock = 32 * kVectors;

  // Sums of counts of two pixels, a in the lower and b in the upper half of a
  // byte, without carries from one to the other: `whole` is a + 16 b, and
  // `upper` is b, to which in even bytes 16 times the next byte's a comes, as
  // the processor shifts no single bytes. All modulo 256.
  struct Sums {
    __m256i whole, upper;

    void add(__m256i counts) {
      whole = _mm256_add_epi8(whole, counts);
      upper = _mm256_add_epi8(upper, _mm256_srli_epi16(counts, 4));
    }
  };

  template <int P>
  static void count(const uint8_t *const *windows, const Plan &plan,
                    const uint8_t *weights, int32_t *differing) {
    constexpr int kPairs = P / 2;
    // Of pixels; of even and odd bytes, 16 outputs each.
    __m256i words[P][kVectors][2] = {};
    int64_t steps = 0;
    bool first = true;
    for (int64_t run = 0; run < plan.run_count; ++run) {
      const uint16_t *window[kPairs];
#pragma clang loop unroll(full)
      for (int p = 0; p < kPairs; ++p)
        window[p] = reinterpret_cast<const uint16_t *>(windows[2 * p] +
                                                       plan.runs[run]);
      for (int64_t begin = 0; begin < plan.run_length; begin += kByteSteps) {
        const int64_t end = std::min(begin + kByteSteps, plan.run_length);
        Sums sums[kPairs][kVectors];
#pragma clang loop unroll(full)
        for (int p = 0; p < kPairs; ++p)
#pragma clang loop unroll(full)
          for (int v = 0; v < kVectors; ++v)
            sums[p][v] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        int64_t k = begin;
        for (; k + kHalfSteps <= end; k += kHalfSteps)
          add_steps<kHalfSteps>(window, k, &weights, sums);
        for (; k < end; ++k) add_steps<1>(window, k, &weights, sums);
#pragma clang loop unroll(full)
        for (int p = 0; p < kPairs; ++p)
#pragma clang loop unroll(full)
          for (int v = 0; v < kVectors; ++v)
            split(sums[p][v], words[2 * p][v], words[2 * p + 1][v]);
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

  template <int kSteps, int kPairs>
  static inline void add_steps(const uint16_t *const (&window)[kPairs],
                               int64_t k, const uint8_t **weights,
                               Sums (&sums)[kPairs][kVectors]) {
#pragma clang loop unroll(full)
    for (int p = 0; p < kPairs; ++p) {
      __m256i counts[kVectors];
#pragma clang loop unroll(full)
      for (int step = 0; step < kSteps; ++step) {
        // A unit is a row's place in bytes.
        const __m256i table = _mm256_broadcastsi128_si256(
            _mm_load_si128(reinterpret_cast<const __m128i *>(
                &kTables.counts[0][0] + window[p][k + step])));
#pragma clang loop unroll(full)
        for (int v = 0; v < kVectors; ++v) {
          const __m256i found = _mm256_shuffle_epi8(
              table, _mm256_load_si256(reinterpret_cast<const __m256i *>(
                         *weights + 32 * (step * kVectors + v))));
          counts[v] = step ? _mm256_add_epi8(counts[v], found) : found;
        }
      }
#pragma clang loop unroll(full)
      for (int v = 0; v < kVectors; ++v) sums[p][v].add(counts[v]);
      // Weights are fetched again for the next pair: to keep them would take
      // registers that the sums need.
      __asm__ volatile("" ::: "memory");
    }
    *weights += 32 * kVectors * kSteps;
  }

  // Adds a's and b's sums to theirs of 16 bits.
  static inline void split(const Sums &sums, __m256i *a, __m256i *b) {
    const __m256i byte = _mm256_set1_epi16(0xff);
    const __m256i b_odd = _mm256_srli_epi16(sums.upper, 8);
    const __m256i a_odd = _mm256_and_si256(
        byte, _mm256_sub_epi16(_mm256_srli_epi16(sums.whole, 8),
                               _mm256_slli_epi16(b_odd, 4)));
    const __m256i b_even = _mm256_and_si256(
        byte, _mm256_sub_epi16(sums.upper, _mm256_slli_epi16(a_odd, 4)));
    const __m256i a_even = _mm256_and_si256(
        byte, _mm256_sub_epi16(sums.whole, _mm256_slli_epi16(b_even, 4)));
    a[0] = _mm256_add_epi16(a[0], a_even);
    a[1] = _mm256_add_epi16(a[1], a_odd);
    b[0] = _mm256_add_epi16(b[0], b_even);
    b[1] = _mm256_add_epi16(b[1], b_odd);
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

inline void pack(const float *x, const float *start, int64_t channels,
                 uint8_t *units) {
  int64_t c = 0;
  for (; c + 8 <= channels; c += 8, units += 4) {
    const uint32_t bits = _mm256_movemask_ps(
        _mm256_cmp_ps(_mm256_loadu_ps(x + c), _mm256_loadu_ps(start + c),
                      _CMP_GE_OQ));
    const uint32_t pair = (bits & 15) << 4 | bits >> 4 << 20;
    std::memcpy(units, &pair, 4);
  }
  for (; c < channels; c += 4, units += 2) {
    uint16_t bits = 0;
    for (int64_t i = 0; i < std::min<int64_t>(4, channels - c); ++i)
      bits |= (x[c + i] >= start[c + i]) << (i + 4);
    std::memcpy(units, &bits, 2);
  }
}

void fill(bool positive, int64_t channels, uint8_t *units) {
  for (int64_t c = 0; c < channels; c += 4, units += 2) {
    uint16_t bits = 0;
    if (positive) bits = ((1 << std::min<int64_t>(4, channels - c)) - 1) << 4;
    std::memcpy(units, &bits, 2);
  }
}

// Puts the unit of the pixel to the right, for outputs, in the upper half.
void pair(uint8_t *row, int64_t bytes, int64_t distance) {
  uint16_t *units = reinterpret_cast<uint16_t *>(row);
  const int64_t count = bytes / 2, right = distance / 2;
  for (int64_t i = 0; i + right < count; ++i) units[i] |= units[i + right] << 4;
}

// Output i of 32 is byte 2 i, or 2 (i - 16) + 1: as sums are widened.
void place(uint32_t bits, int lane, uint8_t *unit) {
  const int vector = lane / 32, i = lane % 32;
  unit[32 * vector + 2 * (i % 16) + i / 16] = bits;
}

}  // namespace

extern const Kernels kAvx2 = {
    "avx2", 4,    2,    Avx2::kBlock, Avx2::kBlock, pack_row<pack>,
    fill,   pair, place, run<Avx2>};

}  // namespace surge
