// The operator Pool: average and maximum of maps in NHWC, as torch computes
// them.
#include <algorithm>
#include <limits>

#include "op.h"

namespace surge {

// No layer has larger kernels, strides or pads.
constexpr int64_t kMost = 1 << 16;

struct Pool {
  static constexpr const char *name = "Pool";
  static constexpr Port inputs[] = {{"X", FLOAT}};
  static constexpr Port outputs[] = {{"Y", FLOAT}};

  explicit Pool(const Info &info)
      : mode_(info.string("mode")),
        kernel_(info.integers("kernel_shape", 2)),
        strides_(info.integers("strides", 2)),
        pads_(info.integers("pads", 4)),
        ceil_(info.integer("ceil_mode", 0)),
        count_padding_(info.integer("count_include_pad", 0)) {
    if (mode_ != "average" && mode_ != "max")
      throw Error("attribute mode is '" + mode_ + "', not average or max");
    for (int axis : {0, 1})
      if (kernel_[axis] < 1 || strides_[axis] < 1 || pads_[axis] < 0 ||
          pads_[axis + 2] < 0 || kernel_[axis] > kMost ||
          strides_[axis] > kMost || pads_[axis] > kMost ||
          pads_[axis + 2] > kMost)
        throw Error("attribute kernel_shape, strides or pads is out of range");
  }

  void compute(Context &context) const {
    Input x = context.input(0);
    x.expect({-1, -1, -1, -1});
    const int64_t h = x.dim(1), w = x.dim(2), c = x.dim(3);
    const int64_t out_h = out_size(0, h), out_w = out_size(1, w);
    const float *in = x.data<float>();
    float *out = context.output<float>(0, {x.dim(0), out_h, out_w, c});
    context.parallel(x.dim(0) * out_h, [&](int64_t line) {
      const int64_t row = line % out_h;
      const float *image = in + line / out_h * h * w * c;
      const Window rows = window(0, row, h);
      for (int64_t column = 0; column < out_w; ++column) {
        const Window columns = window(1, column, w);
        float *y = out + (line * out_w + column) * c;
        const bool average = mode_ == "average";
        std::fill_n(y, c,
                    average ? 0 : -std::numeric_limits<float>::infinity());
        for (int64_t i = rows.begin; i < rows.end; ++i)
          for (int64_t j = columns.begin; j < columns.end; ++j)
            add(image + (i * w + j) * c, c, average, y);
        if (!average) continue;
        const int64_t places =
            count_padding_ ? rows.padded * columns.padded
                           : (rows.end - rows.begin) *
                                 (columns.end - columns.begin);
        for (int64_t i = 0; i < c; ++i) y[i] /= static_cast<float>(places);
      }
    });
  }

 private:
  // Places inside the map, and their number with padding.
  struct Window {
    int64_t begin, end, padded;
  };

  Window window(int axis, int64_t at, int64_t in) const {
    const int64_t begin = at * strides_[axis] - pads_[axis];
    const int64_t end = std::min(begin + kernel_[axis], in + pads_[axis + 2]);
    return {std::max<int64_t>(begin, 0), std::min(end, in), end - begin};
  }

  int64_t out_size(int axis, int64_t in) const {
    const int64_t stride = strides_[axis];
    const int64_t free = in + pads_[axis] + pads_[axis + 2] - kernel_[axis];
    if (free < 0 && !(ceil_ && free + stride > 0)) return 0;
    int64_t out = (free + (ceil_ ? stride - 1 : 0)) / stride + 1;
    // The last window begins inside the map, or in its left padding.
    if (ceil_ && (out - 1) * stride >= in + pads_[axis]) --out;
    return out;
  }

  static void add(const float *x, int64_t c, bool average, float *y) {
    if (average)
      for (int64_t i = 0; i < c; ++i) y[i] += x[i];
    else
      // What is not a number stays.
      for (int64_t i = 0; i < c; ++i)
        y[i] = x[i] > y[i] || x[i] != x[i] ? x[i] : y[i];
  }

  std::string mode_;
  std::vector<int64_t> kernel_, strides_, pads_;
  bool ceil_, count_padding_;
};

const OrtCustomOp *pool_op() { return make_op<Pool>(); }

}  // namespace surge
