// Anchors of a pyramid, as mmdet's AnchorGenerator lays them out.
#pragma once

#include "detection.h"

namespace surge {

// Attributes: `strides`, one per level, in pixels; `anchors`, the base anchors
// of all levels, XYXY; `anchors_per_level`.
class Anchors {
 public:
  explicit Anchors(const Info &info)
      : strides_(info.numbers("strides")),
        base_(info.numbers("anchors")),
        counts_(info.integers("anchors_per_level", strides_.size())) {
    int64_t sum = 0;
    for (int64_t count : counts_) {
      if (count < 1 || count > static_cast<int64_t>(base_.size()))
        throw Error("attribute anchors_per_level is below 1, or above what "
                    "anchors has");
      starts_.push_back(sum);
      sum += count;
    }
    if (sum * 4 != static_cast<int64_t>(base_.size()))
      throw Error("attribute anchors has " + std::to_string(base_.size()) +
                  " values, not 4 for each of anchors_per_level");
  }

  size_t levels() const { return strides_.size(); }
  int64_t per_place(size_t level) const { return counts_[level]; }

  // The anchor at an index into a map's places and their anchors.
  Box at(size_t level, int64_t index, int64_t map_width) const {
    int64_t place = index / counts_[level];
    const float *base =
        &base_[4 * (starts_[level] + index % counts_[level])];
    float x = static_cast<float>(place % map_width) * strides_[level];
    float y = static_cast<float>(place / map_width) * strides_[level];
    return {base[0] + x, base[1] + y, base[2] + x, base[3] + y};
  }

 private:
  std::vector<float> strides_, base_;
  std::vector<int64_t> counts_, starts_;
};

}  // namespace surge
