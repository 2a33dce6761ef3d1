#include "binary_conv.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <stdexcept>

namespace surge {

namespace {

constexpr std::align_val_t kAlignment{64};
// Of the input, for a task: half a megabyte stays in a second-level cache. And
// not so many rows that threads have nothing to share.
constexpr int64_t kTaskFloats = 1 << 17;
constexpr int64_t kMaxRows = 16;
// Of an output, from which on it is written past the caches: 2 MB.
constexpr int64_t kStreamFloats = 1 << 19;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

void AlignedDelete::operator()(uint8_t *p) const {
  ::operator delete[](p, kAlignment);
}

Buffer allocate(size_t bytes) {
  return Buffer(new (kAlignment) uint8_t[std::max<size_t>(bytes, 1)]);
}

int64_t Geometry::out_size(int axis, int64_t in) const {
  const int64_t free = in + pads[axis] + pads[axis + 2] -
                       dilation[axis] * (kernel[axis] - 1) - 1;
  return free < 0 ? 0 : free / stride[axis] + 1;
}

void Geometry::check() const {
  if (groups < 1 || in_channels < 1 || out_channels < 1 ||
      in_channels % groups || out_channels % groups)
    throw std::invalid_argument("groups must divide the channels");
  // No layer has larger ones; sizes computed from them fit into 64 bits.
  constexpr int64_t most = 256;
  const auto within = [](int64_t low, int64_t value) {
    return low <= value && value <= most;
  };
  for (int axis : {0, 1})
    if (!within(1, kernel[axis]) || !within(1, stride[axis]) ||
        !within(1, dilation[axis]) || !within(0, pads[axis]) ||
        !within(0, pads[axis + 2]))
      throw std::invalid_argument(
          "kernel_shape, strides, dilations or pads are out of range");
  // Beyond that float32 has not all whole numbers.
  if (taps() * group_in() > 1 << 24)
    throw std::invalid_argument("sums are of more than 2^24 products");
}

int64_t BinaryConv::padded_channels() const {
  return geometry_.groups * blocks_ * kernels_.block;
}

BinaryConv::BinaryConv(const Geometry &geometry, const uint8_t *weight,
                       const float *start, const Epilogue &epilogue,
                       const Kernels &kernels)
    : geometry_(geometry), kernels_(kernels) {
  const Geometry &g = geometry_;
  g.check();
  start_.assign(start, start + g.in_channels);
  const int64_t bits = kernels.unit_bits;
  const int64_t bytes = ceil_div(g.group_in(), 8);
  group_units_ = ceil_div(g.group_in(), bits);
  blocks_ = ceil_div(g.group_out(), kernels.block);
  block_bytes_ = g.taps() * group_units_ * kernels.weight_unit;
  const int64_t channels = padded_channels();
  weights_ = allocate(g.groups * blocks_ * block_bytes_);
  std::memset(weights_.get(), 0, g.groups * blocks_ * block_bytes_);
  tap_sums_.assign(g.taps() * channels, 0);
  using Member = const float *Epilogue::*;
  constexpr Member members[] = {&Epilogue::scale,  &Epilogue::bias,
                                &Epilogue::factor, &Epilogue::offset,
                                &Epilogue::pre,    &Epilogue::slope,
                                &Epilogue::post};
  for (int i = 0; i < 7; ++i)
    if (epilogue.*members[i]) {
      constants_[i].assign(channels, 0);
      epilogue_.*members[i] = constants_[i].data();
    }
  for (int64_t o = 0; o < g.out_channels; ++o) {
    const int64_t group = o / g.group_out(), inner = o % g.group_out();
    const int64_t block = group * blocks_ + inner / kernels.block;
    const int lane = inner % kernels.block;
    for (int i = 0; i < 7; ++i)
      if (epilogue.*members[i])
        constants_[i][block * kernels.block + lane] =
            (epilogue.*members[i])[o];
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      const uint8_t *row = weight + (o * g.taps() + tap) * bytes;
      int32_t positive = 0;
      for (int64_t unit = 0; unit < group_units_; ++unit) {
        uint32_t value = 0;
        for (int64_t i = 0; i < bits; ++i) {
          const int64_t c = unit * bits + i;
          if (c < g.group_in() && row[c / 8] >> (c % 8) & 1) {
            value |= uint32_t{1} << i;
            ++positive;
          }
        }
        kernels.place(value, lane,
                      weights_.get() + block * block_bytes_ +
                          (tap * group_units_ + unit) * kernels.weight_unit);
      }
      // What the tap adds where all activations are -1, as zeros of padding
      // are packed.
      tap_sums_[tap * channels + block * kernels.block + lane] =
          static_cast<int32_t>(g.group_in()) - 2 * positive;
    }
  }
}

// Which taps of an axis lie in the padding: windows that have the same ones
// are of one kind.
struct BinaryConv::Kinds {
  std::vector<int32_t> of_window;
  std::vector<std::vector<bool>> outside;
};

BinaryConv::Kinds BinaryConv::kinds(int axis, int64_t in, int64_t out) const {
  const Geometry &g = geometry_;
  Kinds found;
  std::vector<bool> outside(g.kernel[axis], false);
  for (int64_t i = 0; i < out; ++i) {
    for (int64_t k = 0; k < g.kernel[axis] && g.pad_value == 0; ++k) {
      const int64_t at =
          i * g.stride[axis] + k * g.dilation[axis] - g.pads[axis];
      outside[k] = at < 0 || at >= in;
    }
    const auto known =
        std::find(found.outside.begin(), found.outside.end(), outside);
    found.of_window.push_back(known - found.outside.begin());
    if (known == found.outside.end()) found.outside.push_back(outside);
  }
  return found;
}

void BinaryConv::run(const float *x, int64_t n, int64_t h, int64_t w,
                     const Maps &maps, float *y,
                     const ParallelFor &parallel) const {
  const Geometry &g = geometry_;
  const Kernels &kernels = kernels_;
  const int64_t out_h = g.out_size(0, h), out_w = g.out_size(1, w);
  const int64_t pixels = out_h * out_w;
  if (n * pixels == 0) return;

  Plan plan;
  plan.geometry = &g;
  plan.epilogue = &epilogue_;
  plan.group_units = group_units_;
  plan.pixel_bytes = g.groups * group_units_ * kernels.unit_bytes;
  plan.row_bytes = (w + g.pads[1] + g.pads[3]) * plan.pixel_bytes;
  plan.weights = weights_.get();
  plan.block_bytes = block_bytes_;
  plan.blocks = blocks_;
  plan.out_columns = out_w;

  // Units of a window's row lie one after the other where nothing is between.
  const bool whole_rows =
      g.groups == 1 && (g.dilation[1] == 1 || g.kernel[1] == 1);
  std::vector<int64_t> runs;
  for (int64_t i = 0; i < g.kernel[0]; ++i)
    for (int64_t j = 0; j < (whole_rows ? 1 : g.kernel[1]); ++j)
      runs.push_back(i * g.dilation[0] * plan.row_bytes +
                     j * g.dilation[1] * plan.pixel_bytes);
  plan.runs = runs.data();
  plan.run_count = runs.size();
  plan.run_length = group_units_ * (whole_rows ? g.kernel[1] : 1);

  const Kinds rows = kinds(0, h, out_h), columns = kinds(1, w, out_w);
  const int64_t channels = padded_channels();
  const int64_t column_kinds = columns.outside.size();
  std::vector<int32_t> bases(rows.outside.size() * column_kinds * channels,
                             g.taps() * g.group_in());
  for (size_t i = 0; i < rows.outside.size(); ++i)
    for (int64_t j = 0; j < column_kinds; ++j)
      for (int64_t tap = 0; tap < g.taps(); ++tap)
        if (rows.outside[i][tap / g.kernel[1]] ||
            columns.outside[j][tap % g.kernel[1]])
          for (int64_t c = 0; c < channels; ++c)
            bases[(i * column_kinds + j) * channels + c] -=
                tap_sums_[tap * channels + c];
  plan.bases = bases.data();
  plan.row_kind = rows.of_window.data();
  plan.column_kind = columns.of_window.data();
  plan.column_kinds = column_kinds;

  // As torch finds the nearest pixel.
  const auto nearest = [](int64_t in, int64_t out, int64_t step) {
    std::vector<int64_t> found(out);
    const float ratio = static_cast<float>(in) / static_cast<float>(out);
    for (int64_t i = 0; i < out; ++i)
      found[i] =
          std::min(static_cast<int64_t>(static_cast<float>(i) * ratio), in - 1) *
          step;
    return found;
  };
  std::vector<int64_t> added_row, added_column;
  if (maps.added) {
    added_row = nearest(maps.added_h, out_h, maps.added_w * g.out_channels);
    added_column = nearest(maps.added_w, out_w, g.out_channels);
  }
  plan.added_column = added_column.data();

  const int64_t out_floats = pixels * g.out_channels;
  plan.stream = out_floats >= kStreamFloats &&
                g.group_out() % kernels.block == 0 &&
                reinterpret_cast<uintptr_t>(y) % 64 == 0;

  // A task packs the rows that its outputs need, while they are near: they are
  // often the residual too. Rows at its ends are packed by its neighbour too.
  const int64_t row_floats = std::max<int64_t>(w * g.in_channels, 1);
  const int64_t task_rows = std::clamp<int64_t>(
      kTaskFloats / (row_floats * g.stride[0]), 1, std::min(out_h, kMaxRows));
  const int64_t tasks = ceil_div(out_h, task_rows);
  const int64_t reach = g.dilation[0] * (g.kernel[0] - 1) + 1;
  const int64_t bytes =
      ((task_rows - 1) * g.stride[0] + reach) * plan.row_bytes;
  parallel(n * tasks, [&](int64_t task) {
    // Kept by each thread: its pages are fetched once.
    thread_local Buffer buffer;
    thread_local int64_t capacity = 0;
    if (bytes > capacity) {
      buffer = allocate(bytes);
      capacity = bytes;
    }
    const int64_t image = task / tasks;
    const int64_t first = task % tasks * task_rows;
    const int64_t last = std::min(first + task_rows, out_h);
    const float *in = x + image * h * w * g.in_channels;
    uint8_t *to = buffer.get();
    for (int64_t row = first * g.stride[0] - g.pads[0],
                 end = (last - 1) * g.stride[0] - g.pads[0] + reach;
         row < end; ++row, to += plan.row_bytes) {
      pack_row(row >= 0 && row < h ? in + row * w * g.in_channels : nullptr, w,
               to);
      if (kernels.pair)
        kernels.pair(to, plan.row_bytes, g.stride[1] * plan.pixel_bytes);
    }
    Plan mine = plan;
    mine.bits = buffer.get();
    mine.row_kind = plan.row_kind + first;
    const int64_t at = image * out_floats + first * out_w * g.out_channels;
    mine.residual = maps.residual ? maps.residual + at : nullptr;
    mine.added = nullptr;
    if (maps.added) {
      mine.added = maps.added +
                   image * maps.added_h * maps.added_w * g.out_channels;
      mine.added_row = added_row.data() + first;
    }
    mine.y = y + at;
    mine.out_rows = last - first;
    kernels.run(mine);
    // Stores past the caches are not in order with those that tell other
    // threads that the task is done.
    if (mine.stream) std::atomic_thread_fence(std::memory_order_seq_cst);
  });
}

void BinaryConv::pack_row(const float *row, int64_t w, uint8_t *to) const {
  const Geometry &g = geometry_;
  const int64_t channels = g.group_in();
  const int64_t bytes = group_units_ * kernels_.unit_bytes;
  const int64_t step = g.groups * bytes;
  for (int64_t group = 0; group < g.groups; ++group, to += bytes) {
    uint8_t *at = to;
    const auto fill = [&](int64_t columns) {
      for (int64_t i = 0; i < columns; ++i, at += step)
        kernels_.fill(g.pad_value > 0, channels, at);
    };
    if (!row) {
      fill(g.pads[1] + w + g.pads[3]);
      continue;
    }
    fill(g.pads[1]);
    kernels_.pack(row + group * channels, w, g.in_channels,
                  start_.data() + group * channels, channels, at, step);
    at += w * step;
    fill(g.pads[3]);
  }
}

}  // namespace surge
