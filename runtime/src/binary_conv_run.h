// The loops around an instruction set's sum of differing bits. It is included
// by one file for each, compiled with that one's flags: all of it is in an
// unnamed namespace, so that no other file's code calls it.
#pragma once

#include <algorithm>

#include "binary_conv.h"

namespace surge {
namespace {

// Applies the epilogue to `channels` outputs of one pixel. Plain loops: the
// compiler makes vectors of them.
template <bool kNorm, bool kResidual, bool kActivation>
inline void finish(const int32_t *__restrict base,
                   const int32_t *__restrict differing, const Epilogue &e,
                   int64_t first, int64_t channels,
                   const float *__restrict residual, float *__restrict y) {
  const float *__restrict scale = e.scale + first;
  const float *__restrict bias = e.bias + first;
  const float *__restrict factor = kNorm ? e.factor + first : nullptr;
  const float *__restrict offset = kNorm ? e.offset + first : nullptr;
  const float *__restrict pre = kActivation ? e.pre + first : nullptr;
  const float *__restrict slope = kActivation ? e.slope + first : nullptr;
  const float *__restrict post = kActivation ? e.post + first : nullptr;
  for (int64_t i = 0; i < channels; ++i) {
    float v = static_cast<float>(base[i] - 2 * differing[i]) * scale[i];
    v += bias[i];
    if (kNorm) {
      v *= factor[i];
      v += offset[i];
    }
    if (kResidual) v += residual[i];
    if (kActivation) {
      v += pre[i];
      v = v > 0 ? v : v * slope[i];
      v += post[i];
    }
    y[i] = v;
  }
}

using Finish = void (*)(const int32_t*, const int32_t*, const Epilogue&,
                        int64_t, int64_t, const float*, float*);

inline Finish choose_finish(const Epilogue &e, bool residual) {
  const bool norm = e.factor, activation = e.slope;
  if (norm)
    return residual ? (activation ? finish<1, 1, 1> : finish<1, 1, 0>)
                    : (activation ? finish<1, 0, 1> : finish<1, 0, 0>);
  return residual ? (activation ? finish<0, 1, 1> : finish<0, 1, 0>)
                  : (activation ? finish<0, 0, 1> : finish<0, 0, 0>);
}

// Isa: kPixels, kBlock, and
//   template <int P> static void count(const uint8_t *const *windows,
//       const Plan&, const uint8_t *weights, int32_t *differing);
// which counts differing bits: (P, kBlock).
template <class Isa, int P>
inline void run_pixels(const Plan &plan, Finish finish,
                       const uint8_t *const *windows,
                       const int32_t *const *bases, int64_t block,
                       int64_t o, int64_t channels, int64_t pixel) {
  alignas(64) int32_t differing[P * Isa::kBlock];
  Isa::template count<P>(windows, plan,
                         plan.weights + block * plan.block_bytes, differing);
  for (int p = 0; p < P; ++p) {
    const int64_t at = (pixel + p) * plan.geometry->out_channels + o;
    finish(bases[p] + block * Isa::kBlock, differing + p * Isa::kBlock,
           *plan.epilogue, o, channels,
           plan.residual ? plan.residual + at : nullptr, plan.y + at);
  }
}

template <class Isa, int P, class... Args>
inline void run_rest(int64_t rest, Args... args) {
  if constexpr (P > 0) {
    if (rest == P)
      run_pixels<Isa, P>(args...);
    else
      run_rest<Isa, P - 1>(rest, args...);
  }
}

template <class Isa>
void run(const Plan &plan, int64_t first, int64_t last) {
  const Geometry &g = *plan.geometry;
  const Finish finish = choose_finish(*plan.epilogue, plan.residual);
  const uint8_t *windows[kMaxPixels];
  const int32_t *bases[kMaxPixels];
  const int64_t count = last - first;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = (first + i) / plan.out_columns;
    const int64_t column = (first + i) % plan.out_columns;
    windows[i] = plan.bits + row * g.stride[0] * plan.row_bytes +
                 column * g.stride[1] * plan.pixel_bytes;
    bases[i] = plan.bases + (plan.row_kind[row] * plan.column_kinds +
                             plan.column_kind[column]) *
                                g.groups * plan.blocks * Isa::kBlock;
  }
  for (int64_t group = 0; group < g.groups; ++group) {
    // A block's weights stay near while they serve all pixels.
    for (int64_t inner = 0; inner < plan.blocks; ++inner) {
      const int64_t block = group * plan.blocks + inner;
      const int64_t o = group * g.group_out() + inner * Isa::kBlock;
      const int64_t channels =
          std::min<int64_t>(Isa::kBlock, (group + 1) * g.group_out() - o);
      int64_t i = 0;
      for (; i + Isa::kPixels <= count; i += Isa::kPixels)
        run_pixels<Isa, Isa::kPixels>(plan, finish, windows + i, bases + i,
                                      block, o, channels, first + i);
      run_rest<Isa, Isa::kPixels - 1>(count - i, plan, finish, windows + i,
                                      bases + i, block, o, channels,
                                      first + i);
    }
    for (int64_t i = 0; i < count; ++i)
      windows[i] += plan.pixel_bytes / g.groups;
  }
}

}  // namespace
}  // namespace surge
