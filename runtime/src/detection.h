// Boxes, scores and suppression as mmdet 3.3 computes them on a CPU.
//
// Arithmetic is float32 in mmdet's order of operations. Scores that are equal
// keep the order of their places, as a stable sort has it; mmdet's own order
// of equal scores depends on the processor.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "op.h"

namespace surge {

// XYXY in pixels.
struct Box {
  float x1, y1, x2, y2;
};

// What Preprocess tells of the image: its output `info`.
struct ImageInfo {
  // Heights and widths of what boxes are clipped to (after Pad, if the
  // pipeline has one), of the resized image and of the original.
  float height, width, new_height, new_width, old_height, old_width;

  explicit ImageInfo(const Input &info);
  // Factors along x and y from the network's pixels to the original's.
  float x_factor() const;
  float y_factor() const;
};

// e^x, at most one unit in the last place from the exact value and the same
// on every machine: double arithmetic, in a form that compilers vectorize.
inline float exp_of(float value) {
  double x = value;
  x = x > 89.0 ? 89.0 : x;
  x = x < -104.0 ? -104.0 : x;
  // To the nearest integer: what is added pushes the fraction out.
  constexpr double shift = 6755399441055744.0;
  double shifted = x * 1.4426950408889634 + shift;
  double n = shifted - shift;
  double r = x - n * 0.6931471805599453;
  // Taylor's series, in pairs; what is left out is below 2e-10.
  double rr = r * r;
  double sum = 1.0 / 5040 + r * (1.0 / 40320);
  sum = 1.0 / 120 + r * (1.0 / 720) + rr * sum;
  sum = 1.0 / 6 + r * (1.0 / 24) + rr * sum;
  sum = 1.0 + r * 0.5 + rr * sum;
  sum = 1.0 + r * sum;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  // NaN stays NaN: so does `sum`.
  return static_cast<float>(sum * power);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp_of(-x)); }

// Softmax of one row.
void softmax(const float *x, int64_t count, float *y);

// The attribute num_classes. Throws unless it is from 1 to 65536, so that
// lengths computed from it fit into 64 bits.
int64_t class_count(const Info &info);

// Like torch's clamp: NaN stays.
inline float clamp(float x, float low, float high) {
  return x < low ? low : (x > high ? high : x);
}

// Indices of the `keep` best scores, best first.
std::vector<int32_t> best(const std::vector<float> &scores, int64_t keep);

// mmdet's DeltaXYWHBBoxCoder.
struct DeltaCoder {
  std::vector<float> means, stds;
  // |log(wh_ratio_clip)|.
  float max_ratio;
  // Whether boxes end at the image's border.
  bool clip;

  explicit DeltaCoder(const Info &info);
  Box decode(const Box &prior, const float *deltas,
             const ImageInfo &image) const;
};

// Boxes to choose from.
struct Candidates {
  std::vector<Box> boxes;
  std::vector<float> scores;
  std::vector<int32_t> labels;

  size_t size() const { return scores.size(); }
};

// mmcv's batched_nms with NMS of type "nms".
struct Suppression {
  // A box goes when its IoU with a better one of its label exceeds this.
  float iou_thr;
  // From so many boxes on mmcv suppresses label by label.
  int64_t split_thr;
  // Boxes to keep; 0 or less: all.
  int64_t max_per_img;

  explicit Suppression(const Info &info);
  // Indices of the kept ones, best first.
  std::vector<int32_t> keep(const Candidates &candidates) const;
};

// Writes outputs boxes [N, 4], scores [N], labels [N].
void write_detections(const Context &context, const Candidates &candidates,
                      const std::vector<int32_t> &kept);

}  // namespace surge
