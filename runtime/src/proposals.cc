// Proposals: what mmdet's RPNHead makes of its maps.
#include "anchors.h"

namespace surge {

struct Proposals {
  static constexpr const char *name = "Proposals";
  // Maps of one image in NHWC: scores [1, h, w, A] of all levels, then deltas
  // [1, h, w, 4 A] of all levels.
  static constexpr Port inputs[] = {{"info", FLOAT},
                                    {"scores or deltas", FLOAT, VARIADIC}};
  // RoIs [R, 4], XYXY in the network's pixels, best first.
  static constexpr Port outputs[] = {{"rois", FLOAT}};

  explicit Proposals(const Info &info)
      : anchors(info),
        coder(info),
        suppression(info),
        nms_pre(info.integer("nms_pre")),
        min_bbox_size(info.number("min_bbox_size")) {}

  void compute(Context &context) const {
    ImageInfo image(context.input(0));
    size_t levels = anchors.levels();
    if (context.inputs() != 1 + 2 * levels)
      throw Error("has " + std::to_string(context.inputs()) +
                  " inputs, not 1 and 2 for each of " +
                  std::to_string(levels) + " strides");
    std::vector<Candidates> found(levels);
    context.parallel(levels, [&](size_t level) {
      Input scores = context.input(1 + level);
      Input deltas = context.input(1 + levels + level);
      find(image, level, scores, deltas, found[level]);
    });
    Candidates all;
    for (const Candidates &one : found) {
      all.boxes.insert(all.boxes.end(), one.boxes.begin(), one.boxes.end());
      all.scores.insert(all.scores.end(), one.scores.begin(),
                        one.scores.end());
      all.labels.insert(all.labels.end(), one.labels.begin(),
                        one.labels.end());
    }
    auto kept = suppression.keep(all);
    int64_t count = kept.size();
    float *rois = context.output<float>(0, {count, 4});
    for (int32_t i : kept) {
      std::memcpy(rois, &all.boxes[i], sizeof(Box));
      rois += 4;
    }
  }

 private:
  void find(const ImageInfo &image, size_t level, const Input &scores,
            const Input &deltas, Candidates &found) const {
    scores.expect({1, -1, -1, anchors.per_place(level)});
    deltas.expect({1, scores.dim(1), scores.dim(2), 4 * scores.dim(3)});
    const float *score = scores.data<float>();
    const float *delta = deltas.data<float>();
    int64_t count = scores.size();
    if (count > INT32_MAX) throw Error("there are too many scores");
    std::vector<float> sigmoids(count);
    for (int64_t i = 0; i < count; ++i) sigmoids[i] = sigmoid(score[i]);
    std::vector<int32_t> order;
    if (0 < nms_pre && nms_pre < count) {
      order = best(sigmoids, nms_pre);
    } else {
      order.resize(count);
      for (int64_t i = 0; i < count; ++i) order[i] = i;
    }
    for (int32_t i : order) {
      Box box = coder.decode(anchors.at(level, i, scores.dim(2)),
                             delta + 4 * i, image);
      if (min_bbox_size >= 0 && !(box.x2 - box.x1 > min_bbox_size &&
                                  box.y2 - box.y1 > min_bbox_size))
        continue;
      found.boxes.push_back(box);
      found.scores.push_back(sigmoids[i]);
      found.labels.push_back(level);
    }
  }

  Anchors anchors;
  DeltaCoder coder;
  Suppression suppression;
  int64_t nms_pre;
  float min_bbox_size;
};

const OrtCustomOp *proposals_op() { return make_op<Proposals>(); }

}  // namespace surge
