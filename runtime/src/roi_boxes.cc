// RoIBoxes: what mmdet's BBoxHead makes of its two linear layers.
#include "detection.h"

namespace surge {

struct RoIBoxes {
  static constexpr const char *name = "RoIBoxes";
  // RoIs [R, 4]; class scores [R, K + 1], background last, before softmax;
  // deltas [R, 4 K], or [R, 4] where all classes share them.
  static constexpr Port inputs[] = {
      {"info", FLOAT}, {"rois", FLOAT}, {"cls", FLOAT}, {"deltas", FLOAT}};
  static constexpr Port outputs[] = {
      {"boxes", FLOAT}, {"scores", FLOAT}, {"labels", INT64}};

  explicit RoIBoxes(const Info &info)
      : coder(info),
        suppression(info),
        classes(class_count(info)),
        score_thr(info.number("score_thr")) {}

  void compute(Context &context) const {
    ImageInfo image(context.input(0));
    Input rois = context.input(1), cls = context.input(2);
    Input deltas = context.input(3);
    rois.expect({-1, 4});
    int64_t count = rois.dim(0);
    cls.expect({count, classes + 1});
    bool shared = deltas.shape().size() == 2 && deltas.dim(1) == 4;
    deltas.expect({count, shared ? 4 : 4 * classes});
    const float *score = cls.data<float>();
    const float *delta = deltas.data<float>();
    const float *roi = rois.data<float>();
    float fx = image.x_factor(), fy = image.y_factor();
    std::vector<float> row(classes + 1);
    Candidates found;
    for (int64_t i = 0; i < count; ++i) {
      softmax(score + i * (classes + 1), classes + 1, row.data());
      for (int64_t k = 0; k < classes; ++k) {
        if (!(row[k] > score_thr)) continue;
        Box prior = {roi[4 * i], roi[4 * i + 1], roi[4 * i + 2],
                     roi[4 * i + 3]};
        int64_t at = shared ? i : i * classes + k;
        Box box = coder.decode(prior, delta + 4 * at, image);
        found.boxes.push_back(
            {box.x1 * fx, box.y1 * fy, box.x2 * fx, box.y2 * fy});
        found.scores.push_back(row[k]);
        found.labels.push_back(k);
      }
    }
    write_detections(context, found, suppression.keep(found));
  }

 private:
  DeltaCoder coder;
  Suppression suppression;
  int64_t classes;
  float score_thr;
};

const OrtCustomOp *roi_boxes_op() { return make_op<RoIBoxes>(); }

}  // namespace surge
