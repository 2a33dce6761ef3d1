// Preprocess: mmdet's Resize and Pad of the pipeline, then its
// DetDataPreprocessor, for one image.
#include <algorithm>
#include <cmath>

#include "op.h"

namespace surge {

namespace {

constexpr int64_t kChannels = 3;
// Output rows of a task.
constexpr int64_t kRows = 16;
// Longest side of an image.
constexpr int64_t kMost = 1 << 16;

// One axis of OpenCV's bilinear interpolation of bytes: each output pixel
// reads two neighbours with weights in units of 1/2048.
struct Taps {
  std::vector<int64_t> low, high;
  std::vector<int32_t> low_weight, high_weight;

  // Where `inside`, a pixel beyond the border has the border's value and
  // whole weight; else only the places are brought back to the border. OpenCV
  // does the first for columns, the second for rows.
  Taps(int64_t in, int64_t out, bool inside) {
    double scale = 1 / (static_cast<double>(out) / in);
    for (int64_t i = 0; i < out; ++i) {
      auto at = static_cast<float>((i + 0.5) * scale - 0.5);
      auto place = static_cast<int64_t>(std::floor(at));
      float fraction = at - static_cast<float>(place);
      if (inside && (place < 0 || place >= in - 1)) fraction = 0;
      low.push_back(std::clamp<int64_t>(place, 0, in - 1));
      high.push_back(std::clamp<int64_t>(place + 1, 0, in - 1));
      low_weight.push_back(std::lrint((1.0f - fraction) * 2048));
      high_weight.push_back(std::lrint(fraction * 2048));
    }
  }
};

// cv2.resize of an image of bytes, bit for bit, a few rows at a time.
class Resize {
 public:
  Resize(const uint8_t *image, int64_t in_height, int64_t in_width,
         int64_t height, int64_t width)
      : image_(image),
        in_width_(in_width),
        width_(width),
        same_(height == in_height && width == in_width),
        // OpenCV averages four pixels here.
        half_(height * 2 == in_height && width * 2 == in_width),
        down_(in_height, height, false),
        across_(in_width, width, true) {}

  // Calls use(row, bytes) for rows [first, last).
  template <class Use>
  void rows(int64_t first, int64_t last, const Use &use) const {
    std::vector<uint8_t> out(width_ * kChannels);
    if (same_ || half_) {
      for (int64_t y = first; y < last; ++y) {
        if (half_) halve(y, out.data());
        use(y, half_ ? out.data() : source(y));
      }
      return;
    }
    // Neighbouring rows share what was interpolated along the row.
    std::vector<int32_t> lines[2];
    int64_t held[2] = {-1, -1};
    for (auto &line : lines) line.resize(width_ * kChannels);
    for (int64_t y = first; y < last; ++y) {
      int64_t wanted[2] = {down_.low[y], down_.high[y]};
      if (held[1] == wanted[0]) {
        std::swap(lines[0], lines[1]);
        std::swap(held[0], held[1]);
      }
      for (int i = 0; i < 2; ++i)
        if (held[i] != wanted[i]) {
          stretch(source(wanted[i]), lines[i].data());
          held[i] = wanted[i];
        }
      blend(lines[0].data(), lines[1].data(), down_.low_weight[y],
            down_.high_weight[y], out.data());
      use(y, out.data());
    }
  }

 private:
  const uint8_t *source(int64_t y) const {
    return image_ + y * in_width_ * kChannels;
  }

  void halve(int64_t y, uint8_t *out) const {
    const uint8_t *a = source(2 * y), *b = source(2 * y + 1);
    for (int64_t x = 0; x < width_; ++x)
      for (int64_t c = 0; c < kChannels; ++c) {
        int64_t i = 2 * x * kChannels + c;
        *out++ = (a[i] + a[i + kChannels] + b[i] + b[i + kChannels] + 2) >> 2;
      }
  }

  void stretch(const uint8_t *row, int32_t *line) const {
    for (int64_t x = 0; x < width_; ++x) {
      const uint8_t *a = row + across_.low[x] * kChannels;
      const uint8_t *b = row + across_.high[x] * kChannels;
      for (int64_t c = 0; c < kChannels; ++c)
        *line++ = a[c] * across_.low_weight[x] + b[c] * across_.high_weight[x];
    }
  }

  void blend(const int32_t *a, const int32_t *b, int32_t a_weight,
             int32_t b_weight, uint8_t *out) const {
    for (int64_t i = 0; i < width_ * kChannels; ++i)
      out[i] = (((a_weight * (a[i] >> 4)) >> 16) +
                ((b_weight * (b[i] >> 4)) >> 16) + 2) >>
               2;
  }

  const uint8_t *image_;
  int64_t in_width_, width_;
  bool same_, half_;
  Taps down_, across_;
};

int64_t multiple(int64_t size, int64_t divisor) {
  return (size + divisor - 1) / divisor * divisor;
}

}  // namespace

struct Preprocess {
  static constexpr const char *name = "Preprocess";
  // BGR, [H, W, 3].
  static constexpr Port inputs[] = {{"image", UINT8}};
  // [1, 3, h, w]; and ImageInfo of detection.h, [8]: height and width of what
  // boxes are clipped to, of the resized image, of the original, of the data.
  static constexpr Port outputs[] = {{"data", FLOAT}, {"info", FLOAT}};

  explicit Preprocess(const Info &info)
      : scale(info.integers("scale", 2)),
        keep_ratio(info.integer("keep_ratio")),
        pad_size(info.integers("pad_size", 2)),
        pad_to_square(info.integer("pad_to_square")),
        pad_divisor(info.integer("pad_divisor")),
        pad_value(info.integers("pad_value", kChannels)),
        to_rgb(info.integer("to_rgb")),
        batch_divisor(info.integer("batch_divisor")),
        batch_value(info.number("batch_value")) {
    auto mean = info.numbers("mean", kChannels);
    auto std = info.numbers("std", kChannels);
    for (int64_t size : {scale[0], scale[1], pad_divisor, batch_divisor})
      if (size < 1 || size > kMost)
        throw Error("attributes scale, pad_divisor and batch_divisor must be "
                    "from 1 to 65536");
    for (int64_t size : pad_size)
      if (size < 0 || size > kMost)
        throw Error("attribute pad_size must be from 0 to 65536");
    for (int64_t value : pad_value)
      if (value < 0 || value > 255)
        throw Error("attribute pad_value must be from 0 to 255");
    for (int64_t c = 0; c < kChannels; ++c)
      for (int value = 0; value < 256; ++value) {
        float difference = static_cast<float>(value) - mean[c];
        table[c][value] = difference / std[c];
      }
  }

  void compute(Context &context) const {
    Input image = context.input(0);
    image.expect({-1, -1, kChannels});
    int64_t old_height = image.dim(0), old_width = image.dim(1);
    if (old_height < 1 || old_width < 1) throw Error("the image is empty");
    int64_t new_height, new_width;
    new_size(old_height, old_width, new_height, new_width);
    if (new_height < 1 || new_width < 1)
      throw Error("an image of " + std::to_string(old_width) + " x " +
                  std::to_string(old_height) +
                  " pixels has no pixel left when it is resized");
    // Pad of the pipeline, then of the batch.
    int64_t height = new_height, width = new_width;
    if (pad_to_square) height = width = std::max(height, width);
    height = std::max(multiple(height, pad_divisor), pad_size[1]);
    width = std::max(multiple(width, pad_divisor), pad_size[0]);
    int64_t full_height = multiple(height, batch_divisor);
    int64_t full_width = multiple(width, batch_divisor);

    float *data = context.output<float>(
        0, {1, kChannels, full_height, full_width});
    const float *pad[kChannels];
    for (int64_t c = 0; c < kChannels; ++c)
      pad[c] = &table[c][pad_value[source(c)]];
    Resize resize(image.data<uint8_t>(), old_height, old_width, new_height,
                  new_width);
    context.parallel((full_height + kRows - 1) / kRows, [&](size_t task) {
      int64_t first = task * kRows;
      int64_t last = std::min(first + kRows, full_height);
      auto row = [&](int64_t c, int64_t y) {
        return data + (c * full_height + y) * full_width;
      };
      resize.rows(first, std::min(last, new_height),
                  [&](int64_t y, const uint8_t *bytes) {
                    for (int64_t c = 0; c < kChannels; ++c) {
                      float *to = row(c, y);
                      const uint8_t *from = bytes + source(c);
                      for (int64_t x = 0; x < new_width; ++x)
                        to[x] = table[c][from[x * kChannels]];
                    }
                  });
      for (int64_t y = first; y < last; ++y)
        for (int64_t c = 0; c < kChannels; ++c) {
          float *to = row(c, y);
          int64_t x = y < new_height ? new_width : 0;
          if (y < height)
            for (; x < width; ++x) to[x] = *pad[c];
          for (; x < full_width; ++x) to[x] = batch_value;
        }
    });

    float *info = context.output<float>(1, {8});
    for (int64_t size : {height, width, new_height, new_width, old_height,
                         old_width, full_height, full_width})
      *info++ = static_cast<float>(size);
  }

 private:
  // The image's channel that the data's channel c is.
  int64_t source(int64_t c) const { return to_rgb ? kChannels - 1 - c : c; }

  // mmcv's rescale_size, in Python's arithmetic.
  void new_size(int64_t height, int64_t width, int64_t &new_height,
                int64_t &new_width) const {
    new_width = scale[0], new_height = scale[1];
    if (!keep_ratio) return;
    auto [short_edge, long_edge] = std::minmax(scale[0], scale[1]);
    double factor = std::min(
        static_cast<double>(long_edge) / std::max(height, width),
        static_cast<double>(short_edge) / std::min(height, width));
    new_width = static_cast<int64_t>(width * factor + 0.5);
    new_height = static_cast<int64_t>(height * factor + 0.5);
  }

  std::vector<int64_t> scale;
  bool keep_ratio;
  std::vector<int64_t> pad_size;
  bool pad_to_square;
  int64_t pad_divisor;
  std::vector<int64_t> pad_value;
  bool to_rgb;
  int64_t batch_divisor;
  float batch_value;
  float table[kChannels][256];
};

const OrtCustomOp *preprocess_op() { return make_op<Preprocess>(); }

}  // namespace surge
