// The loops around an instruction set's sum of differing bits. It is included
// by one file for each, compiled with that one's flags: all of it is in an
// unnamed namespace, so that no other file's code calls it.
#pragma once

#include <algorithm>
#include <cstring>

#include "binary_conv.h"

namespace surge {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

template <class Vector, class Scalar>
inline Vector load(const Scalar *from) {
  Vector v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

// Pixels that are computed one after the other with a block of weights.
constexpr int64_t kMaxPixels = 96;

// Where the outputs of one pixel are written (null: nowhere), and what is added
// to them.
struct Pixel {
  const uint8_t *window;
  const int32_t *base;
  const float *residual, *added;
  float *y;
};

// Outputs of a block: the first is channel o of the map; its constants, stored
// for whole blocks, begin at `at`.
struct Channels {
  int64_t o, count, at;
};

// The first `count` of a vector, the rest is zero.
inline Floats load_some(const float *from, int64_t count) {
  float values[kLanes] = {};
  std::copy_n(from, count, values);
  return load<Floats>(values);
}

// The epilogue of a block of outputs of some pixels. Whole maps that are too
// large to stay in the caches are written past them.
template <bool kNorm, bool kActivation, bool kStream>
inline void finish(const Epilogue e, const Pixel *pixels, int64_t count,
                   const int32_t *differing, int64_t block, Channels c) {
  for (int64_t i = 0; i < c.count; i += kLanes) {
    const int64_t at = c.at + i, rest = c.count - i;
    const Floats scale = load<Floats>(e.scale + at);
    const Floats bias = load<Floats>(e.bias + at);
    Floats factor, offset, pre, slope, post;
    if (kNorm) {
      factor = load<Floats>(e.factor + at);
      offset = load<Floats>(e.offset + at);
    }
    if (kActivation) {
      pre = load<Floats>(e.pre + at);
      slope = load<Floats>(e.slope + at);
      post = load<Floats>(e.post + at);
    }
    const auto map = [&](const float *of) {
      of += c.o + i;
      return rest < kLanes ? load_some(of, rest) : load<Floats>(of);
    };
    for (int64_t p = 0; p < count; ++p) {
      const Pixel &pixel = pixels[p];
      if (!pixel.y) continue;
      const Ints sum = load<Ints>(pixel.base + at) -
                       2 * load<Ints>(differing + p * block + i);
      Floats v = __builtin_convertvector(sum, Floats) * scale;
      v += bias;
      if (kNorm) {
        v *= factor;
        v += offset;
      }
      if (pixel.residual) v += map(pixel.residual);
      if (kActivation) {
        v += pre;
        v = v > 0 ? v : v * slope;
        v += post;
      }
      if (pixel.added) v += map(pixel.added);
      float *const y = pixel.y + c.o + i;
      if (kStream)
        __builtin_nontemporal_store(v, reinterpret_cast<Floats *>(y));
      else if (rest < kLanes)
        __builtin_memcpy(y, &v, rest * sizeof(float));
      else
        __builtin_memcpy(y, &v, sizeof(v));
    }
  }
}

using Finish = void (*)(Epilogue, const Pixel *, int64_t, const int32_t *,
                        int64_t, Channels);

inline Finish choose_finish(const Plan &plan) {
  const bool norm = plan.epilogue->factor, activation = plan.epilogue->slope;
  if (plan.stream)
    return norm ? (activation ? finish<1, 1, 1> : finish<1, 0, 1>)
                : (activation ? finish<0, 1, 1> : finish<0, 0, 1>);
  return norm ? (activation ? finish<1, 1, 0> : finish<1, 0, 0>)
              : (activation ? finish<0, 1, 0> : finish<0, 0, 0>);
}

// Isa: kPixels, kBlock, kPair (2 if pixels come in pairs of neighbours), and
//   template <int P> static void count(const uint8_t *const *windows,
//       const Plan &, const uint8_t *weights, int32_t *differing);
// which counts differing bits: (P, kBlock).
template <class Isa, int P>
inline void run_pixels(const Plan &plan, Finish finish, const Pixel *pixels,
                       int64_t block, Channels channels) {
  alignas(64) int32_t differing[P * Isa::kBlock];
  const uint8_t *windows[P];
  for (int p = 0; p < P; ++p) windows[p] = pixels[p].window;
  Isa::template count<P>(windows, plan,
                         plan.weights + block * plan.block_bytes, differing);
  finish(*plan.epilogue, pixels, P, differing, Isa::kBlock, channels);
}

template <class Isa, int P, class... Args>
inline void run_rest(int64_t rest, Args... args) {
  if constexpr (P > 0) {
    if (rest == P)
      run_pixels<Isa, P>(args...);
    else
      run_rest<Isa, P - Isa::kPair>(rest, args...);
  }
}

template <class Isa>
void run_list(const Plan &plan, Finish finish, Pixel *pixels, int64_t count) {
  const Geometry &g = *plan.geometry;
  for (int64_t group = 0; group < g.groups; ++group) {
    // A block's weights stay near while they serve all pixels.
    for (int64_t inner = 0; inner < plan.blocks; ++inner) {
      const int64_t block = group * plan.blocks + inner;
      const int64_t o = group * g.group_out() + inner * Isa::kBlock;
      const Channels channels = {
          o, std::min<int64_t>(Isa::kBlock, (group + 1) * g.group_out() - o),
          block * Isa::kBlock};
      int64_t i = 0;
      for (; i + Isa::kPixels <= count; i += Isa::kPixels)
        run_pixels<Isa, Isa::kPixels>(plan, finish, pixels + i, block,
                                      channels);
      run_rest<Isa, Isa::kPixels - Isa::kPair>(count - i, plan, finish,
                                               pixels + i, block, channels);
    }
    for (int64_t i = 0; i < count; ++i)
      pixels[i].window += plan.pixel_bytes / g.groups;
  }
}

template <class Isa>
void run(const Plan &plan) {
  const Geometry &g = *plan.geometry;
  const Finish finish = choose_finish(plan);
  const int64_t channels = g.groups * plan.blocks * Isa::kBlock;
  Pixel pixels[kMaxPixels];
  int64_t count = 0;
  for (int64_t row = 0; row < plan.out_rows; ++row) {
    const uint8_t *window = plan.bits + row * g.stride[0] * plan.row_bytes;
    const int32_t *base =
        plan.bases + plan.row_kind[row] * plan.column_kinds * channels;
    for (int64_t column = 0; column < plan.out_columns; ++column) {
      const int64_t at =
          (row * plan.out_columns + column) * g.out_channels;
      pixels[count++] = {
          window, base + plan.column_kind[column] * channels,
          plan.residual ? plan.residual + at : nullptr,
          plan.added
              ? plan.added + plan.added_row[row] + plan.added_column[column]
              : nullptr,
          plan.y + at};
      window += g.stride[1] * plan.pixel_bytes;
      // The last one of a row may have no neighbour.
      if (column + 1 == plan.out_columns && count % Isa::kPair) {
        pixels[count] = pixels[count - 1];
        pixels[count++].y = nullptr;
      }
      if (count == kMaxPixels) {
        run_list<Isa>(plan, finish, pixels, count);
        count = 0;
      }
    }
  }
  run_list<Isa>(plan, finish, pixels, count);
}

// For kernels whose units are words of 32 bits.
inline void fill_words(bool positive, int64_t channels, uint8_t *units) {
  for (int64_t c = 0; c < channels; c += 32, units += 4) {
    uint32_t bits = 0;
    if (positive) bits = channels - c < 32 ? (1u << (channels - c)) - 1 : ~0u;
    std::memcpy(units, &bits, 4);
  }
}

inline void place_word(uint32_t bits, int lane, uint8_t *unit) {
  std::memcpy(unit + 4 * lane, &bits, 4);
}

// Packs a row of pixels of one group.
template <void (*pack_pixel)(const float *, const float *, int64_t, uint8_t *)>
void pack_row(const float *x, int64_t pixels, int64_t x_step,
              const float *start, int64_t channels, uint8_t *to,
              int64_t to_step) {
  for (int64_t i = 0; i < pixels; ++i, x += x_step, to += to_step)
    pack_pixel(x, start, channels, to);
}

}  // namespace
}  // namespace surge
