// The operator BinaryConv.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "binary_conv.h"
#include "op.h"

namespace surge {

namespace {

enum Inputs : size_t {
  X,
  WEIGHT,
  START,
  SCALE,
  BIAS,
  FACTOR,
  OFFSET,
  RESIDUAL,
  PRE,
  SLOPE,
  POST,
  ADDED
};

void serial(int64_t count, const std::function<void(int64_t)> &task) {
  for (int64_t i = 0; i < count; ++i) task(i);
}

}  // namespace

struct BinaryConvOp {
  static constexpr const char *name = "BinaryConv";
  static constexpr Port inputs[] = {
      {"X", FLOAT},
      {"weight", UINT8},
      {"start", FLOAT},
      {"scale", FLOAT},
      {"bias", FLOAT, OPTIONAL},
      {"factor", FLOAT, OPTIONAL},
      {"offset", FLOAT, OPTIONAL},
      {"residual", FLOAT, OPTIONAL},
      {"pre", FLOAT, OPTIONAL},
      {"slope", FLOAT, OPTIONAL},
      {"post", FLOAT, OPTIONAL},
      {"added", FLOAT, OPTIONAL},
  };
  static constexpr Port outputs[] = {{"Y", FLOAT}};

  explicit BinaryConvOp(const Info &info) {
    Input weight = info.constant(WEIGHT), start = info.constant(START);
    weight.expect({-1, -1, -1});
    start.expect({-1});
    Geometry g;
    g.in_channels = start.dim(0);
    g.out_channels = weight.dim(0);
    g.groups = info.integer("groups", 1);
    const auto kernel = info.integers("kernel_shape", 2);
    const auto strides = info.integers("strides", 2);
    const auto dilations = info.integers("dilations", 2);
    const auto pads = info.integers("pads", 4);
    std::copy(kernel.begin(), kernel.end(), g.kernel);
    std::copy(strides.begin(), strides.end(), g.stride);
    std::copy(dilations.begin(), dilations.end(), g.dilation);
    std::copy(pads.begin(), pads.end(), g.pads);
    const float value = info.number("pad_value");
    if (value != 0 && value != 1 && value != -1)
      throw Error("attribute pad_value is " + std::to_string(value) +
                  ", not 0, 1 or -1");
    g.pad_value = static_cast<int>(value);
    g.check();
    weight.expect({g.out_channels, g.taps(), (g.group_in() + 7) / 8});

    for (size_t index : {BIAS, FACTOR, OFFSET, PRE, SLOPE, POST})
      if (!info.constant(index)) absent_.push_back(index);
    Epilogue e;
    std::vector<std::vector<float>> kept;
    const auto constant = [&](size_t index, float absent) {
      Input given = info.constant(index);
      if (given || index == SCALE) {
        given.expect({g.out_channels});
        return given.data<float>();
      }
      kept.emplace_back(g.out_channels, absent);
      return static_cast<const float *>(kept.back().data());
    };
    e.scale = constant(SCALE, 1);
    e.bias = constant(BIAS, 0);
    if (info.constant(FACTOR) || info.constant(OFFSET)) {
      e.factor = constant(FACTOR, 1);
      e.offset = constant(OFFSET, 0);
    }
    if (info.constant(PRE) || info.constant(SLOPE) || info.constant(POST)) {
      e.pre = constant(PRE, 0);
      e.slope = constant(SLOPE, 1);
      e.post = constant(POST, 0);
    }
    conv_ = std::make_unique<BinaryConv>(g, weight.data<uint8_t>(),
                                         start.data<float>(), e);
    if (const int64_t right = info.integer("check", 0)) {
      const int64_t found = checksum(start.data<float>());
      if (found != right)
        throw Error(std::string("the kernels (") + conv_->kernels().name +
                    ") compute other values than those stored in the model");
    }
  }

  void compute(Context &context) const {
    const Geometry &g = conv_->geometry();
    for (size_t index : absent_)
      if (context.has(index))
        throw Error(std::string("input ") + inputs[index].name +
                    " is not stored in the model");
    Input x = context.input(X), residual = context.input(RESIDUAL);
    Input added = context.input(ADDED);
    x.expect({-1, -1, -1, g.in_channels});
    const Shape shape = {x.dim(0), g.out_size(0, x.dim(1)),
                         g.out_size(1, x.dim(2)), g.out_channels};
    Maps maps;
    if (residual) {
      residual.expect(shape);
      maps.residual = residual.data<float>();
    }
    if (added) {
      added.expect({shape[0], -1, -1, g.out_channels});
      maps.added = added.data<float>();
      maps.added_h = added.dim(1);
      maps.added_w = added.dim(2);
      if (added.size() == 0) throw Error("input added is empty");
    }
    float *y = context.output<float>(0, shape);
    conv_->run(x.data<float>(), x.dim(0), x.dim(1), x.dim(2), maps, y,
               [&](int64_t count, const std::function<void(int64_t)> &task) {
                 context.parallel(count, task);
               });
  }

 private:
  // Of the output for a small made-up input, which the exporter computes in
  // its own way (surge_det/deploy/onnx). Half of the values are just on the
  // threshold.
  int64_t checksum(const float *start) const {
    const Geometry &g = conv_->geometry();
    int64_t in[2], out[2];
    for (int axis : {0, 1}) {
      in[axis] =
          g.dilation[axis] * (g.kernel[axis] - 1) + 1 + g.stride[axis];
      out[axis] = g.out_size(axis, in[axis]);
    }
    std::vector<float> x(in[0] * in[1] * g.in_channels);
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = start[i % g.in_channels];
      if (static_cast<uint32_t>((i + 1) * 2654435761u) >> 16 & 1)
        x[i] -= std::abs(x[i]) + 1;
    }
    std::vector<float> y(out[0] * out[1] * g.out_channels), residual(y.size());
    for (size_t i = 0; i < y.size(); ++i)
      residual[i] = static_cast<float>(i % 7) - 3;
    Maps maps;
    maps.residual = residual.data();
    conv_->run(x.data(), 1, in[0], in[1], maps, y.data(), serial);
    uint64_t sum = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      const float value = y[i] + 0.0f;  // no negative zero
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      sum += (uint64_t{bits} + 1) * (2 * i + 1);
    }
    return static_cast<int64_t>(sum);
  }

  std::unique_ptr<BinaryConv> conv_;
  // Constants that the model has not got.
  std::vector<size_t> absent_;
};

const OrtCustomOp *binary_conv_op() { return make_op<BinaryConvOp>(); }

}  // namespace surge
