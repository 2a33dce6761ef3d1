// RoIAlign over a pyramid in NHWC, as mmdet's SingleRoIExtractor and
// torchvision's kernel compute it: the same samples, summed in the same order.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "binary_conv.h"
#include "op.h"

namespace surge {

namespace {

// Where one sample along one axis reads, and how much of either.
struct Sample {
  int64_t low, high;
  float low_weight, high_weight;
  bool inside;
};

// The samples of all bins along one axis, `per_bin` of them each.
struct Axis {
  int64_t per_bin;
  std::vector<Sample> samples;

  Axis(float start, float size, int64_t bins, int64_t ratio, int64_t limit) {
    float bin = size / static_cast<float>(bins);
    per_bin = ratio;
    // A RoI that is not a number, or far beyond any map, has no samples.
    if (ratio <= 0)
      per_bin = bin > 0 && bin < kMost ? static_cast<int64_t>(std::ceil(bin))
                                       : 0;
    for (int64_t b = 0; b < bins; ++b)
      for (int64_t i = 0; i < per_bin; ++i) {
        float at = start + static_cast<float>(b) * bin +
                   (static_cast<float>(i) + 0.5f) * bin /
                       static_cast<float>(per_bin);
        samples.push_back(sample(at, limit));
      }
  }

  static constexpr float kMost = 65536;

  static Sample sample(float at, int64_t limit) {
    if (limit < 1 || !(at >= -1.0f && at <= static_cast<float>(limit)))
      return {0, 0, 0, 0, false};
    if (at <= 0) at = 0;
    auto low = static_cast<int64_t>(at);
    int64_t high = low + 1;
    if (low >= limit - 1) {
      low = high = limit - 1;
      at = static_cast<float>(low);
    }
    float fraction = at - static_cast<float>(low);
    return {low, high, 1.0f - fraction, fraction, true};
  }
};

// Averages all bins of one RoI. `C` channels at a time stay in registers.
template <int C>
inline __attribute__((always_inline)) void pool_channels(
    const float *map, int64_t width, int64_t channels, const Axis &down,
    const Axis &across, int64_t bins, int64_t from, float *out) {
  float count =
      static_cast<float>(std::max<int64_t>(down.per_bin * across.per_bin, 1));
  for (int64_t by = 0; by < bins; ++by)
    for (int64_t bx = 0; bx < bins; ++bx) {
      float sum[C] = {};
      for (int64_t iy = 0; iy < down.per_bin; ++iy) {
        const Sample &y = down.samples[by * down.per_bin + iy];
        if (!y.inside) continue;
        const float *upper = map + y.low * width * channels + from;
        const float *lower = map + y.high * width * channels + from;
        for (int64_t ix = 0; ix < across.per_bin; ++ix) {
          const Sample &x = across.samples[bx * across.per_bin + ix];
          if (!x.inside) continue;
          const float *a = upper + x.low * channels;
          const float *b = upper + x.high * channels;
          const float *c = lower + x.low * channels;
          const float *d = lower + x.high * channels;
          float wa = y.low_weight * x.low_weight;
          float wb = y.low_weight * x.high_weight;
          float wc = y.high_weight * x.low_weight;
          float wd = y.high_weight * x.high_weight;
          for (int i = 0; i < C; ++i)
            sum[i] += wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i];
        }
      }
      float *to = out + (by * bins + bx) * channels + from;
      for (int i = 0; i < C; ++i) to[i] = sum[i] / count;
    }
}

template <int block>
inline __attribute__((always_inline)) void pool(
    const float *map, int64_t width, int64_t channels, const Axis &down,
    const Axis &across, int64_t bins, float *out) {
  int64_t from = 0;
  for (; from + block <= channels; from += block)
    pool_channels<block>(map, width, channels, down, across, bins, from, out);
  for (; from + 8 <= channels; from += 8)
    pool_channels<8>(map, width, channels, down, across, bins, from, out);
  for (; from < channels; ++from)
    pool_channels<1>(map, width, channels, down, across, bins, from, out);
}

using Pool = void(const float *map, int64_t width, int64_t channels,
                  const Axis &down, const Axis &across, int64_t bins,
                  float *out);

// NEON is part of every aarch64 processor and needs no file of its own.
void pool_base(const float *map, int64_t width, int64_t channels,
               const Axis &down, const Axis &across, int64_t bins,
               float *out) {
  pool<32>(map, width, channels, down, across, bins, out);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void pool_avx2(
    const float *map, int64_t width, int64_t channels, const Axis &down,
    const Axis &across, int64_t bins, float *out) {
  pool<64>(map, width, channels, down, across, bins, out);
}

__attribute__((target("avx512f"))) void pool_avx512(
    const float *map, int64_t width, int64_t channels, const Axis &down,
    const Axis &across, int64_t bins, float *out) {
  pool<64>(map, width, channels, down, across, bins, out);
}
#endif

// The one of the instruction set that the 1-bit kernels have.
Pool *best_pool() {
#if defined(__x86_64__)
  const std::string isa = best_kernels().name;
  if (isa == "avx512") return pool_avx512;
  if (isa == "avx2") return pool_avx2;
#endif
  return pool_base;
}

}  // namespace

struct RoIAlign {
  static constexpr const char *name = "RoIAlign";
  // RoIs [R, 4], XYXY in the network's pixels; maps [1, h, w, C] of all
  // levels.
  static constexpr Port inputs[] = {{"rois", FLOAT},
                                    {"maps", FLOAT, VARIADIC}};
  // [R, s, s, C].
  static constexpr Port outputs[] = {{"Y", FLOAT}};

  explicit RoIAlign(const Info &info)
      : strides(info.numbers("strides")),
        bins(info.integer("output_size")),
        ratio(info.integer("sampling_ratio")),
        finest_scale(info.number("finest_scale")),
        aligned(info.integer("aligned")),
        pool(best_pool()) {
    if (bins < 1 || bins > 1024)
      throw Error("attribute output_size must be from 1 to 1024");
    if (ratio < 0 || ratio > 1024)
      throw Error("attribute sampling_ratio must be from 0 to 1024");
    if (strides.empty()) throw Error("attribute strides is empty");
  }

  void compute(Context &context) const {
    Input rois = context.input(0);
    rois.expect({-1, 4});
    size_t levels = strides.size();
    if (context.inputs() != 1 + levels)
      throw Error("has " + std::to_string(context.inputs()) +
                  " inputs, not 1 and one for each of " +
                  std::to_string(levels) + " strides");
    std::vector<Input> maps;
    for (size_t i = 0; i < levels; ++i) {
      maps.push_back(context.input(1 + i));
      maps[i].expect({1, -1, -1, i ? maps[0].dim(3) : -1});
    }
    int64_t channels = maps[0].dim(3);
    int64_t area = bins * bins * channels;
    const float *roi = rois.data<float>();
    float *out = context.output<float>(0, {rois.dim(0), bins, bins, channels});
    context.parallel(rois.dim(0), [&](size_t i) {
      align(roi + 4 * i, maps, out + i * area);
    });
  }

 private:
  void align(const float *roi, const std::vector<Input> &maps,
             float *out) const {
    size_t level = 0;
    if (maps.size() > 1) {
      float scale = std::sqrt((roi[2] - roi[0]) * (roi[3] - roi[1]));
      float x = scale / finest_scale + 1e-6f;
      float log = static_cast<float>(std::log2(static_cast<double>(x)));
      if (log != log) {  // no level
        std::memset(out, 0, sizeof(float) * bins * bins * maps[0].dim(3));
        return;
      }
      float last = static_cast<float>(maps.size() - 1);
      level = static_cast<size_t>(
          std::min(std::max(std::floor(log), 0.0f), last));
    }
    const Input &map = maps[level];
    float scale = static_cast<float>(1 / static_cast<double>(strides[level]));
    float shift = aligned ? 0.5f : 0.0f;
    float x1 = roi[0] * scale - shift, y1 = roi[1] * scale - shift;
    float x2 = roi[2] * scale - shift, y2 = roi[3] * scale - shift;
    float w = x2 - x1, h = y2 - y1;
    if (!aligned) {
      w = std::max(w, 1.0f);
      h = std::max(h, 1.0f);
    }
    Axis down(y1, h, bins, ratio, map.dim(1));
    Axis across(x1, w, bins, ratio, map.dim(2));
    pool(map.data<float>(), map.dim(2), map.dim(3), down, across, bins, out);
  }

  std::vector<float> strides;
  int64_t bins, ratio;
  float finest_scale;
  bool aligned;
  Pool *pool;
};

const OrtCustomOp *roi_align_op() { return make_op<RoIAlign>(); }

}  // namespace surge
