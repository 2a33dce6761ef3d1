// Holds the kernels against a plain convolution of signs, over generated
// shapes; with a number as argument, measures R18/FPN's 3x3 layers, each that
// many times. Exit status 1 says that a value differed.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>

#include "binary_conv.h"

using surge::BinaryConv;
using surge::Epilogue;
using surge::Geometry;
using surge::Kernels;

namespace {

std::mt19937 random_bits(0);

int64_t pick(int64_t low, int64_t high) {
  return low + random_bits() % (high - low + 1);
}

void serial(int64_t count, const std::function<void(int64_t)>& task) {
  for (int64_t i = 0; i < count; ++i) task(i);
}

struct Layer {
  Geometry g;
  std::vector<uint8_t> weight;
  std::vector<float> start, scale, bias, factor, offset, pre, slope, post;
  Epilogue e;

  explicit Layer(const Geometry &geometry) : g(geometry) {
    const int64_t bytes = (g.group_in() + 7) / 8;
    weight.resize(g.out_channels * g.taps() * bytes);
    for (auto &byte : weight) byte = random_bits();
    // Bits of channels that there are not.
    if (g.group_in() % 8)
      for (size_t i = bytes - 1; i < weight.size(); i += bytes)
        weight[i] &= (1 << g.group_in() % 8) - 1;
    std::normal_distribution<float> normal;
    start.resize(g.in_channels);
    for (auto &v : start) v = 0.3f * normal(random_bits);
    for (auto *values : {&scale, &bias, &factor, &offset, &pre, &slope, &post}) {
      values->resize(g.out_channels);
      for (auto &v : *values) v = normal(random_bits);
    }
    e = {scale.data(), bias.data()};
  }

  int sign(int64_t o, int64_t tap, int64_t c) const {
    const int64_t bytes = (g.group_in() + 7) / 8;
    return weight[(o * g.taps() + tap) * bytes + c / 8] >> (c % 8) & 1 ? 1
                                                                       : -1;
  }
};

float expected(const Layer &layer, const float *x, int64_t h, int64_t w,
               int64_t row, int64_t column, int64_t o, const float *residual,
               const float *added) {
  const Geometry &g = layer.g;
  const int64_t group = o / g.group_out();
  int sum = 0;
  for (int64_t i = 0; i < g.kernel[0]; ++i)
    for (int64_t j = 0; j < g.kernel[1]; ++j) {
      const int64_t y = row * g.stride[0] + i * g.dilation[0] - g.pads[0];
      const int64_t z = column * g.stride[1] + j * g.dilation[1] - g.pads[1];
      for (int64_t c = 0; c < g.group_in(); ++c) {
        const int64_t channel = group * g.group_in() + c;
        int a = g.pad_value;
        if (y >= 0 && y < h && z >= 0 && z < w)
          a = x[(y * w + z) * g.in_channels + channel] >= layer.start[channel]
                  ? 1
                  : -1;
        sum += a * layer.sign(o, i * g.kernel[1] + j, c);
      }
    }
  float v = static_cast<float>(sum) * layer.scale[o];
  v += layer.bias[o];
  if (layer.e.factor) {
    v *= layer.factor[o];
    v += layer.offset[o];
  }
  if (residual) v += *residual;
  if (layer.e.slope) {
    v += layer.pre[o];
    v = v > 0 ? v : v * layer.slope[o];
    v += layer.post[o];
  }
  if (added) v += *added;
  return v;
}

bool check(const Kernels &kernels, int number) {
  Geometry g;
  g.groups = pick(0, 3) ? 1 : pick(1, 4);
  g.in_channels = g.groups * pick(1, pick(0, 1) ? 9 : 150);
  g.out_channels = g.groups * pick(1, pick(0, 1) ? 9 : 150);
  for (int axis : {0, 1}) {
    g.kernel[axis] = pick(1, 4);
    g.stride[axis] = pick(1, 3);
    g.dilation[axis] = pick(1, 3);
    g.pads[axis] = pick(0, 4);
    g.pads[axis + 2] = pick(0, 4);
  }
  // Sums beyond 16 bits.
  if (number % 50 == 49) {
    g = Geometry();
    g.in_channels = 70000;
    g.out_channels = 3;
  }
  g.pad_value = static_cast<int>(pick(0, 2)) - 1;
  Layer layer(g);
  // Where all weights are +1 and a pixel's signs are alike, all bits differ or
  // none: the most that a count must hold.
  const bool extreme = number % 3 == 0;
  if (extreme)
    for (int64_t i = 0, bytes = (g.group_in() + 7) / 8;
         i < static_cast<int64_t>(layer.weight.size()); ++i)
      layer.weight[i] = i % bytes == bytes - 1 && g.group_in() % 8
                            ? (1 << g.group_in() % 8) - 1
                            : 255;
  if (pick(0, 1)) {
    layer.e.factor = layer.factor.data();
    layer.e.offset = layer.offset.data();
  }
  if (pick(0, 1)) {
    layer.e.pre = layer.pre.data();
    layer.e.slope = layer.slope.data();
    layer.e.post = layer.post.data();
  }
  const int64_t n = pick(1, 2), h = pick(1, 20), w = pick(1, 20);
  std::vector<float> x(n * h * w * g.in_channels);
  std::normal_distribution<float> normal;
  for (auto &v : x) v = normal(random_bits);
  for (size_t i = 0; i < x.size(); i += 7)
    x[i] = layer.start[i % g.in_channels];  // the sign of 0 is +1
  if (extreme)
    for (size_t i = 0; i < x.size(); i += g.in_channels)
      std::fill_n(&x[i], g.in_channels, pick(0, 1) ? 100.0f : -100.0f);
  const int64_t oh = g.out_size(0, h), ow = g.out_size(1, w);
  std::vector<float> y(n * oh * ow * g.out_channels), residual(y.size());
  for (auto &v : residual) v = normal(random_bits);
  surge::Maps maps;
  if (pick(0, 1)) maps.residual = residual.data();
  maps.added_h = pick(1, 20);
  maps.added_w = pick(1, 20);
  std::vector<float> added(n * maps.added_h * maps.added_w * g.out_channels);
  for (auto &v : added) v = normal(random_bits);
  if (pick(0, 1)) maps.added = added.data();
  BinaryConv(g, layer.weight.data(), layer.start.data(), layer.e, kernels)
      .run(x.data(), n, h, w, maps, y.data(), serial);
  for (size_t i = 0; i < y.size(); ++i) {
    const int64_t o = i % g.out_channels, at = i / g.out_channels;
    const int64_t image = at / (oh * ow);
    const int64_t row = at % (oh * ow) / ow, column = at % ow;
    const auto nearest = [](int64_t i, int64_t in, int64_t out) {
      return std::min<int64_t>(float(i) * (float(in) / float(out)), in - 1);
    };
    const float *more = &added[((image * maps.added_h +
                                 nearest(row, maps.added_h, oh)) *
                                    maps.added_w +
                                nearest(column, maps.added_w, ow)) *
                                   g.out_channels +
                               o];
    const float right =
        expected(layer, x.data() + image * h * w * g.in_channels, h, w, row,
                 column, o, maps.residual ? &residual[i] : nullptr,
                 maps.added ? more : nullptr);
    if (y[i] != right) {
      std::printf("%s, shape %d: output %zu is %g, not %g\n", kernels.name,
                  number, i, y[i], right);
      return false;
    }
  }
  return true;
}

double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return time.tv_sec + 1e-9 * time.tv_nsec;
}

void measure(const Kernels &kernels, int times) {
  const int64_t shapes[][6] = {
      // in, out, stride, rows, columns of the input
      {64, 64, 1, 150, 250, 0},   {64, 128, 2, 150, 250, 0},
      {128, 128, 1, 75, 125, 0},  {128, 256, 2, 75, 125, 0},
      {256, 256, 1, 38, 63, 0},   {256, 512, 2, 38, 63, 0},
      {512, 512, 1, 19, 32, 0},   {256, 256, 1, 150, 250, 0},
      {256, 256, 1, 75, 125, 0},  {256, 256, 1, 38, 63, 0},
      {256, 256, 1, 19, 32, 0},   {64, 64, 1, 60, 80, 0},
      {512, 512, 1, 8, 10, 0}};
  for (const auto &s : shapes) {
    Geometry g;
    g.in_channels = s[0];
    g.out_channels = s[1];
    g.stride[0] = g.stride[1] = s[2];
    g.kernel[0] = g.kernel[1] = 3;
    for (auto &pad : g.pads) pad = 1;
    Layer layer(g);
    std::vector<float> x(s[3] * s[4] * s[0]);
    std::normal_distribution<float> normal;
    for (auto &v : x) v = normal(random_bits);
    const int64_t pixels = g.out_size(0, s[3]) * g.out_size(1, s[4]);
    surge::Buffer buffer = surge::allocate(pixels * s[1] * sizeof(float));
    float *y = reinterpret_cast<float *>(buffer.get());
    BinaryConv conv(g, layer.weight.data(), layer.start.data(), layer.e,
                    kernels);
    std::vector<double> seconds;
    for (int i = 0; i < times; ++i) {
      const double begin = cpu_seconds();
      conv.run(x.data(), 1, s[3], s[4], {}, y, serial);
      seconds.push_back(cpu_seconds() - begin);
    }
    std::sort(seconds.begin(), seconds.end());
    const double median = seconds[times / 2];
    std::printf("%s %ldx%ld %ld->%ld/%ld: %.3f ms, %.0f GMAC/s\n",
                kernels.name, s[3], s[4], s[0], s[1], s[2], 1e3 * median,
                9e-9 * pixels * s[0] * s[1] / median);
  }
}

}  // namespace

int main(int argc, char** argv) {
  int failures = 0;
  for (const char *name : {"avx512", "avx2", "neon", "generic"}) {
    const Kernels *kernels = surge::find_kernels(name);
    if (!kernels) continue;
    if (argc > 2 && std::strcmp(argv[2], name)) continue;
    if (argc > 1) {
      measure(*kernels, std::atoi(argv[1]));
      continue;
    }
    for (int number = 0; number < 300; ++number)
      failures += !check(*kernels, number);
    std::printf("%s: 300 shapes\n", name);
  }
  return failures != 0;
}
