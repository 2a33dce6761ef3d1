// 1-bit convolution of maps in NHWC: what every instruction set shares.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace surge {

// Memory that vectors are loaded from whole.
struct AlignedDelete {
  void operator()(uint8_t *p) const;
};
using Buffer = std::unique_ptr<uint8_t[], AlignedDelete>;
Buffer allocate(size_t bytes);

// Sizes of a layer; those of the input come with each call.
struct Geometry {
  int64_t in_channels = 0;
  int64_t out_channels = 0;
  int64_t groups = 1;
  int64_t kernel[2] = {1, 1};  // rows, columns
  int64_t stride[2] = {1, 1};
  int64_t dilation[2] = {1, 1};
  int64_t pads[4] = {0, 0, 0, 0};  // top, left, bottom, right
  int pad_value = 0;               // 0, 1 or -1

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t group_in() const { return in_channels / groups; }
  int64_t group_out() const { return out_channels / groups; }
  // Of the output, for an input's; 0 where the input is too small.
  int64_t out_size(int axis, int64_t in) const;
  // Throws std::invalid_argument if numbers are out of range.
  void check() const;
};

// What follows the sum, one number per output channel each. Each step is
// rounded by itself, in this order: scale, bias, factor, offset, residual map,
// pre, slope (PReLU), post, added map. Without a norm factor is null, without
// an activation slope is; what goes with them is neutral where absent.
struct Epilogue {
  const float *scale = nullptr;
  const float *bias = nullptr;
  const float *factor = nullptr;
  const float *offset = nullptr;
  const float *pre = nullptr;
  const float *slope = nullptr;
  const float *post = nullptr;
};

// Maps that are added: one of the output's size, and one of any size, (n, h,
// w, out_channels), enlarged to it by its nearest pixels. Null where absent.
struct Maps {
  const float *residual = nullptr;
  const float *added = nullptr;
  int64_t added_h = 0, added_w = 0;
};

// Runs tasks 0 to count - 1, in threads or one after the other.
using ParallelFor =
    std::function<void(int64_t count, const std::function<void(int64_t)>&)>;

struct Plan;

// One instruction set's kernels. Bits of activations and of weights come in
// units; a kernel sums a block of output channels over a few pixels at a time.
struct Kernels {
  const char *name;
  int unit_bits;        // channels in a unit
  int unit_bytes;       // of activations
  int block;            // output channels
  int64_t weight_unit;  // bytes of a unit of a block's weights
  // Packs the channels of a group of a row of pixels.
  void (*pack)(const float *x, int64_t pixels, int64_t x_step,
               const float *start, int64_t channels, uint8_t *units,
               int64_t step);
  // Units of -1 or +1, as padding has them.
  void (*fill)(bool positive, int64_t channels, uint8_t *units);
  // Joins units of pixels of which one is that far to the right of the other,
  // in bytes, where kernels take two output pixels together; or null.
  void (*pair)(uint8_t *row, int64_t bytes, int64_t distance);
  // Puts a unit's bits of one output channel in its place in a block's.
  void (*place)(uint32_t bits, int lane, uint8_t *unit);
  // Computes the outputs.
  void (*run)(const Plan &plan);
};

// The best ones that the processor has, or those that SURGE_ISA names.
// Throws std::runtime_error if it names others than the processor's.
const Kernels &best_kernels();
// By name; null if this build or the processor has not got them.
const Kernels *find_kernels(const char *name);

// What a kernel must know to compute some rows of an image.
struct Plan {
  const Geometry *geometry;
  const Epilogue *epilogue;
  const uint8_t *bits;     // padded input: rows, columns, groups, units
  int64_t pixel_bytes;     // of a column
  int64_t row_bytes;
  int64_t group_units;
  // Where runs of units that lie one after the other begin, in bytes from a
  // window's first unit, and their length in units.
  const int64_t *runs;
  int64_t run_count;
  int64_t run_length;
  const uint8_t *weights;  // groups, blocks, units, lanes
  int64_t block_bytes;
  int64_t blocks;          // of a group
  // For each kind of row and column a window may have, what counts of
  // differing bits are subtracted from, twice: channels of whole blocks.
  const int32_t *bases;
  const int32_t *row_kind;
  const int32_t *column_kind;
  int64_t column_kinds;
  int64_t out_rows, out_columns;
  const float *residual;   // of these rows, or null
  const float *added;      // of the image, or null
  const int64_t *added_row;     // where rows and columns of the output find
  const int64_t *added_column;  // theirs
  bool stream;             // whether y is too large for the caches
  float *y;
};

class BinaryConv {
 public:
  // weight: signs as bits, (out_channels, taps, bytes), first channel lowest.
  // Throws std::invalid_argument if geometry.check() does.
  BinaryConv(const Geometry &geometry, const uint8_t *weight,
             const float *start, const Epilogue &epilogue,
             const Kernels &kernels = best_kernels());

  // x (n, h, w, in_channels) to y (n, h_out, w_out, out_channels).
  void run(const float *x, int64_t n, int64_t h, int64_t w,
           const Maps &maps, float *y, const ParallelFor &parallel) const;

  const Geometry &geometry() const { return geometry_; }
  const Kernels &kernels() const { return kernels_; }

 private:
  struct Kinds;
  Kinds kinds(int axis, int64_t in, int64_t out) const;
  int64_t padded_channels() const;
  // Packs a row with its padding; a row of padding where row is null.
  void pack_row(const float *row, int64_t w, uint8_t *to) const;

  Geometry geometry_;
  const Kernels &kernels_;
  std::vector<float> start_;
  int64_t group_units_;
  int64_t blocks_;
  int64_t block_bytes_;
  Buffer weights_;
  // Of whole blocks of channels, as their weights are.
  std::vector<int32_t> tap_sums_;  // (taps, channels)
  std::vector<float> constants_[7];
  Epilogue epilogue_;
};

}  // namespace surge
