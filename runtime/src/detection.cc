#include "detection.h"

#include <algorithm>

namespace surge {

ImageInfo::ImageInfo(const Input &info) {
  info.expect({8});
  const float *x = info.data<float>();
  height = x[0], width = x[1];
  new_height = x[2], new_width = x[3];
  old_height = x[4], old_width = x[5];
}

// mmdet divides twice, in Python: the scale factor, then its inverse.
float ImageInfo::x_factor() const {
  double scale = static_cast<double>(new_width) / old_width;
  return static_cast<float>(1 / scale);
}

float ImageInfo::y_factor() const {
  double scale = static_cast<double>(new_height) / old_height;
  return static_cast<float>(1 / scale);
}

void softmax(const float *x, int64_t count, float *y) {
  float most = x[0];
  for (int64_t i = 1; i < count; ++i) most = x[i] > most ? x[i] : most;
  for (int64_t i = 0; i < count; ++i) y[i] = exp_of(x[i] - most);
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += y[i];
  for (int64_t i = 0; i < count; ++i) y[i] /= sum;
}

int64_t class_count(const Info &info) {
  int64_t count = info.integer("num_classes");
  if (count < 1 || count > 1 << 16)
    throw Error("attribute num_classes is " + std::to_string(count) +
                ", not from 1 to 65536");
  return count;
}

// A number that is smaller the better the score is; NaN is best, as for torch.
static uint32_t rank(float score) {
  if (score != score) return 0;
  uint32_t bits;
  score += 0.0f;  // -0 equals 0
  std::memcpy(&bits, &score, sizeof bits);
  return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

std::vector<int32_t> best(const std::vector<float> &scores, int64_t keep) {
  if (scores.size() > INT32_MAX) throw Error("there are too many scores");
  std::vector<uint64_t> keys(scores.size());
  for (size_t i = 0; i < keys.size(); ++i)
    keys[i] = static_cast<uint64_t>(rank(scores[i])) << 32 | i;
  if (keep < static_cast<int64_t>(keys.size())) {
    std::nth_element(keys.begin(), keys.begin() + keep, keys.end());
    keys.resize(keep);
  }
  std::sort(keys.begin(), keys.end());
  std::vector<int32_t> order(keys.size());
  for (size_t i = 0; i < keys.size(); ++i)
    order[i] = static_cast<int32_t>(keys[i] & 0xffffffffu);
  return order;
}

DeltaCoder::DeltaCoder(const Info &info)
    : means(info.numbers("means", 4)),
      stds(info.numbers("stds", 4)),
      max_ratio(info.number("max_ratio")),
      clip(info.integer("clip_border")) {}

Box DeltaCoder::decode(const Box &prior, const float *deltas,
                       const ImageInfo &image) const {
  float d[4];
  for (int i = 0; i < 4; ++i) {
    d[i] = deltas[i] * stds[i];
    d[i] += means[i];
  }
  float px = (prior.x1 + prior.x2) * 0.5f, pw = prior.x2 - prior.x1;
  float py = (prior.y1 + prior.y2) * 0.5f, ph = prior.y2 - prior.y1;
  float x = px + pw * d[0], y = py + ph * d[1];
  float w = pw * exp_of(clamp(d[2], -max_ratio, max_ratio)) * 0.5f;
  float h = ph * exp_of(clamp(d[3], -max_ratio, max_ratio)) * 0.5f;
  Box box = {x - w, y - h, x + w, y + h};
  if (clip) {
    box.x1 = clamp(box.x1, 0, image.width);
    box.y1 = clamp(box.y1, 0, image.height);
    box.x2 = clamp(box.x2, 0, image.width);
    box.y2 = clamp(box.y2, 0, image.height);
  }
  return box;
}

Suppression::Suppression(const Info &info)
    : iou_thr(info.number("iou_thr")),
      split_thr(info.integer("split_thr", 10000)),
      max_per_img(info.integer("max_per_img")) {
  if (!(iou_thr >= 0 && iou_thr <= 1))
    throw Error("attribute iou_thr is " + std::to_string(iou_thr) +
                ", not from 0 to 1");
}

namespace {

// The kept boxes that a new one is compared with.
class Kept {
 public:
  bool suppress(const Box &box, float area, float iou_thr) const {
    for (size_t start = 0; start < x1_.size(); start += kBlock) {
      int32_t over = 0;
      for (size_t i = start; i < start + kBlock; ++i) {
        // As torchvision's loop has it, also where a number is NaN.
        float x1 = x1_[i] < box.x1 ? box.x1 : x1_[i];
        float y1 = y1_[i] < box.y1 ? box.y1 : y1_[i];
        float x2 = box.x2 < x2_[i] ? box.x2 : x2_[i];
        float y2 = box.y2 < y2_[i] ? box.y2 : y2_[i];
        float w = x2 - x1, h = y2 - y1;
        w = 0 < w ? w : 0;
        h = 0 < h ? h : 0;
        float overlap = w * h;
        over |= overlap / (area_[i] + area - overlap) > iou_thr;
      }
      if (over) return true;
    }
    return false;
  }

  void add(const Box &box, float area) {
    // The rest of a block is NaN, which suppresses nothing.
    if (count_ == x1_.size())
      for (auto *list : {&x1_, &y1_, &x2_, &y2_, &area_})
        list->resize(count_ + kBlock, NAN);
    x1_[count_] = box.x1, y1_[count_] = box.y1;
    x2_[count_] = box.x2, y2_[count_] = box.y2;
    area_[count_++] = area;
  }

 private:
  static constexpr size_t kBlock = 16;
  size_t count_ = 0;
  std::vector<float> x1_, y1_, x2_, y2_, area_;
};

}  // namespace

std::vector<int32_t> Suppression::keep(const Candidates &candidates) const {
  int64_t count = candidates.size();
  std::vector<int32_t> kept;
  if (!count) return kept;
  // mmcv moves each label's boxes to a place of their own.
  float most = candidates.boxes[0].x1, least = most;
  int32_t labels = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Box &box = candidates.boxes[i];
    for (float x : {box.x1, box.y1, box.x2, box.y2}) {
      // A comparison with NaN is false; once NaN, always NaN.
      most = most >= x ? most : (most == most ? x : most);
      least = least <= x ? least : (least == least ? x : least);
    }
    labels = std::max(labels, candidates.labels[i]);
  }
  // There they meet no others, except those with negative coordinates.
  bool apart = count >= split_thr || least >= 0;
  std::vector<Kept> groups(apart ? labels + 1 : 1);
  for (int32_t i : best(candidates.scores, count)) {
    int32_t label = candidates.labels[i];
    float offset = static_cast<float>(label) * (most + 1.0f);
    Box box = candidates.boxes[i];
    box.x1 += offset, box.y1 += offset;
    box.x2 += offset, box.y2 += offset;
    float area = (box.x2 - box.x1) * (box.y2 - box.y1);
    Kept &group = groups[apart ? label : 0];
    if (group.suppress(box, area, iou_thr)) continue;
    group.add(box, area);
    kept.push_back(i);
    if (static_cast<int64_t>(kept.size()) == max_per_img) break;
  }
  return kept;
}

void write_detections(const Context &context, const Candidates &candidates,
                      const std::vector<int32_t> &kept) {
  int64_t count = kept.size();
  float *boxes = context.output<float>(0, {count, 4});
  float *scores = context.output<float>(1, {count});
  int64_t *labels = context.output<int64_t>(2, {count});
  for (int32_t i : kept) {
    std::memcpy(boxes, &candidates.boxes[i], sizeof(Box));
    boxes += 4;
    *scores++ = candidates.scores[i];
    *labels++ = candidates.labels[i];
  }
}

}  // namespace surge
