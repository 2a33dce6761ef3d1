// DenseBoxes: what mmdet's one-stage heads make of their maps. SSD, RetinaNet
// (coder "delta"), FCOS, RTMDet ("distance") follow BaseDenseHead; YOLOX
// ("yolox") has rules of its own.
#include <algorithm>
#include <memory>

#include "anchors.h"

namespace surge {

namespace {

// Scores of a task.
constexpr int64_t kTask = 1 << 16;
// Scores that are looked at together.
constexpr int64_t kBlock = 32;

// Scores of one level above the threshold, with their places in
// [h * w * A, K].
struct Found {
  std::vector<float> scores;
  std::vector<int64_t> places;

  void add(float score, int64_t place) {
    scores.push_back(score);
    places.push_back(place);
  }
  void append(const Found &other) {
    scores.insert(scores.end(), other.scores.begin(), other.scores.end());
    places.insert(places.end(), other.places.begin(), other.places.end());
  }
};

}  // namespace

struct DenseBoxes {
  static constexpr const char *name = "DenseBoxes";
  // Maps of one image in NHWC, as mmdet's `predict_by_feat` takes them: scores
  // [1, h, w, A K] of all levels (A (K + 1), background last, with softmax),
  // then deltas [1, h, w, 4 A] of all levels, then, with has_factor,
  // centerness or objectness [1, h, w, A] of all levels.
  static constexpr Port inputs[] = {
      {"info", FLOAT}, {"scores, deltas or factors", FLOAT, VARIADIC}};
  static constexpr Port outputs[] = {
      {"boxes", FLOAT}, {"scores", FLOAT}, {"labels", INT64}};

  explicit DenseBoxes(const Info &info)
      : coder(info.string("coder")),
        strides(info.numbers("strides")),
        classes(class_count(info)),
        softmax(info.integer("softmax")),
        has_factor(info.integer("has_factor")),
        score_thr(info.number("score_thr")),
        suppression(info) {
    if (coder == "yolox") {
      if (softmax || !has_factor)
        throw Error("coder yolox goes with has_factor, without softmax");
      offset = info.number("offset");
      return;
    }
    nms_pre = info.integer("nms_pre");
    if (nms_pre < 1) throw Error("attribute nms_pre is below 1");
    min_bbox_size = info.number("min_bbox_size");
    if (coder == "delta") {
      anchors = std::make_unique<Anchors>(info);
      deltas = std::make_unique<DeltaCoder>(info);
    } else if (coder == "distance") {
      offset = info.number("offset");
      clip = info.integer("clip_border");
    } else {
      throw Error("attribute coder is " + coder +
                  ", not delta, distance or yolox");
    }
  }

  void compute(Context &context) const {
    ImageInfo image(context.input(0));
    size_t levels = strides.size(), groups = has_factor ? 3 : 2;
    if (context.inputs() != 1 + groups * levels)
      throw Error("has " + std::to_string(context.inputs()) +
                  " inputs, not 1 and " + std::to_string(groups) +
                  " for each of " + std::to_string(levels) + " strides");
    std::vector<Input> maps[3];
    for (size_t group = 0; group < groups; ++group)
      for (size_t i = 0; i < levels; ++i)
        maps[group].push_back(context.input(1 + group * levels + i));
    for (size_t i = 0; i < levels; ++i) {
      int64_t count = per_place(i);
      maps[0][i].expect({1, -1, -1, count * row()});
      int64_t height = maps[0][i].dim(1), width = maps[0][i].dim(2);
      maps[1][i].expect({1, height, width, 4 * count});
      if (has_factor) maps[2][i].expect({1, height, width, count});
    }
    Candidates all;
    std::vector<Found> found = find(context, maps);
    for (size_t i = 0; i < levels; ++i)
      decode(image, i, found[i], maps[1][i], has_factor ? maps[2][i] : Input(),
             all);
    write_detections(context, all, suppression.keep(all));
  }

 private:
  // Priors at each place of a map.
  int64_t per_place(size_t level) const {
    return anchors ? anchors->per_place(level) : 1;
  }

  // Scores of a prior.
  int64_t row() const { return softmax ? classes + 1 : classes; }

  // Scores of all levels, each in the order of its places.
  std::vector<Found> find(const Context &context,
                          const std::vector<Input> *maps) const {
    struct Task {
      size_t level;
      int64_t first, last;  // priors
    };
    std::vector<Task> tasks;
    int64_t step = std::max<int64_t>(kTask / row(), 1);
    for (size_t i = 0; i < strides.size(); ++i)
      for (int64_t at = 0, end = maps[0][i].size() / row(); at < end;
           at += step)
        tasks.push_back({i, at, std::min(at + step, end)});
    std::vector<Found> parts(tasks.size()), found(strides.size());
    context.parallel(tasks.size(), [&](size_t i) {
      const Task &task = tasks[i];
      const float *score = maps[0][task.level].data<float>();
      if (coder == "yolox")
        find_yolox(score, maps[2][task.level].data<float>(), task.first,
                   task.last, parts[i]);
      else if (softmax)
        find_softmax(score, task.first, task.last, parts[i]);
      else
        find_sigmoid(score, task.first * classes, task.last * classes,
                     parts[i]);
    });
    for (size_t i = 0; i < tasks.size(); ++i)
      found[tasks[i].level].append(parts[i]);
    return found;
  }

  void find_sigmoid(const float *score, int64_t first, int64_t last,
                    Found &found) const {
    // Most scores are far below the threshold: no sigmoid of those. The
    // margin is wider than its rounding.
    float bound = -INFINITY;
    if (score_thr > 0 && score_thr < 1)
      bound = std::log(score_thr / (1 - score_thr)) - 0.01f;
    for (int64_t start = first; start < last; start += kBlock) {
      int64_t end = std::min(start + kBlock, last);
      int32_t any = 0;
      for (int64_t i = start; i < end; ++i) any |= score[i] >= bound;
      if (!any) continue;
      for (int64_t i = start; i < end; ++i) {
        float value = sigmoid(score[i]);
        if (value > score_thr) found.add(value, i);
      }
    }
  }

  void find_softmax(const float *score, int64_t first, int64_t last,
                    Found &found) const {
    std::vector<float> values(row());
    for (int64_t i = first; i < last; ++i) {
      surge::softmax(score + i * row(), row(), values.data());
      for (int64_t k = 0; k < classes; ++k)
        if (values[k] > score_thr) found.add(values[k], i * classes + k);
    }
  }

  // The best class of each prior; the first one, where several are.
  void find_yolox(const float *score, const float *objectness, int64_t first,
                  int64_t last, Found &found) const {
    for (int64_t i = first; i < last; ++i) {
      float present = sigmoid(objectness[i]);
      if (present < score_thr) continue;  // as no class is above 1
      const float *row = score + i * classes;
      int64_t best = 0;
      float most = sigmoid(row[0]);
      for (int64_t k = 1; k < classes; ++k) {
        float value = sigmoid(row[k]);
        // NaN is the greatest, as for torch.
        if (value > most || (value != value && most == most))
          most = value, best = k;
      }
      float value = most * present;
      if (value >= score_thr) found.add(value, i * classes + best);
    }
  }

  void decode(const ImageInfo &image, size_t level, const Found &found,
              const Input &map, const Input &factor, Candidates &all) const {
    const float *delta = map.data<float>();
    int64_t width = map.dim(2);
    float stride = strides[level];
    if (coder == "yolox") {
      auto fx = static_cast<float>(static_cast<double>(image.new_width) /
                                   image.old_width);
      auto fy = static_cast<float>(static_cast<double>(image.new_height) /
                                   image.old_height);
      for (size_t i = 0; i < found.scores.size(); ++i) {
        int64_t place = found.places[i] / classes;
        const float *d = delta + 4 * place;
        float x = d[0] * stride + point(place % width, stride);
        float y = d[1] * stride + point(place / width, stride);
        float w = exp_of(d[2]) * stride / 2, h = exp_of(d[3]) * stride / 2;
        all.boxes.push_back(
            {(x - w) / fx, (y - h) / fy, (x + w) / fx, (y + h) / fy});
        all.scores.push_back(found.scores[i]);
        all.labels.push_back(found.places[i] % classes);
      }
      return;
    }
    float fx = image.x_factor(), fy = image.y_factor();
    for (int32_t i : best(found.scores, nms_pre)) {
      int64_t prior = found.places[i] / classes;
      const float *d = delta + 4 * prior;
      Box box = anchors
                    ? deltas->decode(anchors->at(level, prior, width), d, image)
                    : from_distances(prior, width, stride, d, image);
      box = {box.x1 * fx, box.y1 * fy, box.x2 * fx, box.y2 * fy};
      if (min_bbox_size >= 0 && !(box.x2 - box.x1 > min_bbox_size &&
                                  box.y2 - box.y1 > min_bbox_size))
        continue;
      float score = found.scores[i];
      if (factor) score *= sigmoid(factor.data<float>()[prior]);
      all.boxes.push_back(box);
      all.scores.push_back(score);
      all.labels.push_back(found.places[i] % classes);
    }
  }

  // A coordinate of mmdet's MlvlPointGenerator.
  float point(int64_t place, float stride) const {
    return (static_cast<float>(place) + offset) * stride;
  }

  Box from_distances(int64_t place, int64_t width, float stride,
                     const float *d, const ImageInfo &image) const {
    float x = point(place % width, stride), y = point(place / width, stride);
    Box box = {x - d[0], y - d[1], x + d[2], y + d[3]};
    if (clip) {
      box.x1 = clamp(box.x1, 0, image.width);
      box.y1 = clamp(box.y1, 0, image.height);
      box.x2 = clamp(box.x2, 0, image.width);
      box.y2 = clamp(box.y2, 0, image.height);
    }
    return box;
  }

  std::string coder;
  std::vector<float> strides;
  int64_t classes;
  bool softmax, has_factor;
  float score_thr;
  Suppression suppression;
  // Of the coders other than "yolox".
  int64_t nms_pre = 0;
  float min_bbox_size = -1;
  // Of "delta".
  std::unique_ptr<Anchors> anchors;
  std::unique_ptr<DeltaCoder> deltas;
  // Of "distance" and "yolox".
  float offset = 0;
  bool clip = false;
};

const OrtCustomOp *dense_boxes_op() { return make_op<DenseBoxes>(); }

}  // namespace surge
