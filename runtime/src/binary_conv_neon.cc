// NEON: exclusive or, count, add, 8 channels of sixteen outputs at a time.
#include <arm_neon.h>

#include "binary_conv_run.h"

namespace surge {
namespace {

// Adds that cannot overflow 8 bits, each of at most 8.
constexpr int64_t kByteSteps = 31;

struct Neon {
  static constexpr int kPair = 1;
  static constexpr int kPixels = 4;
  static constexpr int kVectors = 4;
  static constexpr int kBlock = 16 * kVectors;

  template <int P>
  static void count(const uint8_t *const *windows, const Plan &plan,
                    const uint8_t *weights, int32_t *differing) {
    uint32x4_t *to = reinterpret_cast<uint32x4_t*>(differing);
    for (int i = 0; i < P * kBlock / 4; ++i) to[i] = vdupq_n_u32(0);
    for (int64_t run = 0; run < plan.run_count; ++run) {
      const uint8_t *window[P];
#pragma clang loop unroll(full)
      for (int p = 0; p < P; ++p) window[p] = windows[p] + plan.runs[run];
      for (int64_t begin = 0; begin < plan.run_length; begin += kByteSteps) {
        const int64_t end = std::min(plan.run_length, begin + kByteSteps);
        uint8x16_t sums[P][kVectors];
#pragma clang loop unroll(full)
        for (int p = 0; p < P; ++p)
#pragma clang loop unroll(full)
          for (int v = 0; v < kVectors; ++v) sums[p][v] = vdupq_n_u8(0);
        for (int64_t k = begin; k < end; ++k) {
          uint8x16_t w[kVectors];
#pragma clang loop unroll(full)
          for (int v = 0; v < kVectors; ++v) w[v] = vld1q_u8(weights + 16 * v);
          weights += 16 * kVectors;
#pragma clang loop unroll(full)
          for (int p = 0; p < P; ++p) {
            const uint8x16_t a = vld1q_dup_u8(window[p] + k);
#pragma clang loop unroll(full)
            for (int v = 0; v < kVectors; ++v)
              sums[p][v] = vaddq_u8(sums[p][v], vcntq_u8(veorq_u8(a, w[v])));
          }
        }
#pragma clang loop unroll(full)
        for (int p = 0; p < P; ++p)
#pragma clang loop unroll(full)
          for (int v = 0; v < kVectors; ++v) {
            uint32x4_t *at = to + (p * kVectors + v) * 4;
            const uint16x8_t first = vmovl_u8(vget_low_u8(sums[p][v]));
            const uint16x8_t second = vmovl_high_u8(sums[p][v]);
            at[0] = vaddw_u16(at[0], vget_low_u16(first));
            at[1] = vaddw_high_u16(at[1], first);
            at[2] = vaddw_u16(at[2], vget_low_u16(second));
            at[3] = vaddw_high_u16(at[3], second);
          }
      }
    }
  }
};

inline void pack(const float *x, const float *start, int64_t channels,
                 uint8_t *units) {
  const uint32x4_t low = {1, 2, 4, 8}, high = {16, 32, 64, 128};
  int64_t c = 0;
  for (; c + 8 <= channels; c += 8) {
    const uint32x4_t a =
        vandq_u32(vcgeq_f32(vld1q_f32(x + c), vld1q_f32(start + c)), low);
    const uint32x4_t b = vandq_u32(
        vcgeq_f32(vld1q_f32(x + c + 4), vld1q_f32(start + c + 4)), high);
    *units++ = vaddvq_u32(vorrq_u32(a, b));
  }
  if (c < channels) {
    *units = 0;
    for (int64_t i = 0; c + i < channels; ++i)
      *units |= (x[c + i] >= start[c + i]) << i;
  }
}

void fill(bool positive, int64_t channels, uint8_t *units) {
  for (int64_t c = 0; c < channels; c += 8)
    *units++ =
        positive ? (1 << std::min<int64_t>(8, channels - c)) - 1 : 0;
}

void place(uint32_t bits, int lane, uint8_t *unit) { unit[lane] = bits; }

}  // namespace

extern const Kernels kNeon = {
    "neon", 8, 1, Neon::kBlock, Neon::kBlock, pack_row<pack>, fill, nullptr, place, run<Neon>};

}  // namespace surge
