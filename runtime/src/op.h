// Operators of ONNX Runtime as plain classes.
//
// An operator is a class with a name, its inputs and outputs, a constructor
// that takes an `Info` (attributes and constant inputs; it packs weights and
// checks arguments here) and a function `compute` that takes a `Context`:
//
//   struct Scale {
//     static constexpr const char *name = "Scale";
//     static constexpr Port inputs[] = {{"x", FLOAT}, {"by", FLOAT, OPTIONAL}};
//     static constexpr Port outputs[] = {{"y", FLOAT}};
//     explicit Scale(const Info &info);
//     void compute(Context &context) const;
//   };
//   const OrtCustomOp *scale_op() { return make_op<Scale>(); }
//
// Enter it in the list of ops.cc. Errors are thrown as `Error`; they become a
// status of ONNX Runtime at the boundary and reach Python as an exception.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort.h"

namespace surge {

extern const OrtApi *api;

using Shape = std::vector<int64_t>;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// "a (1, 2, 3)" of a shape, for messages.
std::string text(const Shape &shape);

// Throws what a status says.
void check(OrtStatus *status);

struct Port {
  const char *name;
  OrtType type;
  // VARIADIC: the last input only, zero or more of them.
  OrtCharacteristic kind = REQUIRED;
};

// A tensor to read, or nothing where an optional input is absent.
class Input {
 public:
  Input() = default;
  Input(const OrtValue *value, const char *name);

  explicit operator bool() const { return value_ != nullptr; }
  const Shape &shape() const { return shape_; }
  int64_t dim(size_t axis) const { return shape_[axis]; }
  int64_t size() const;

  // The elements. Throws where the tensor is absent or of another type.
  template <class T>
  const T *data() const {
    return static_cast<const T *>(raw(type_of(static_cast<T *>(nullptr))));
  }

  // Throws unless the tensor has this shape; -1 stands for any length.
  void expect(const Shape &shape) const;

 private:
  static OrtType type_of(float *) { return FLOAT; }
  static OrtType type_of(uint8_t *) { return UINT8; }
  static OrtType type_of(int64_t *) { return INT64; }
  const void *raw(OrtType type) const;

  const OrtValue *value_ = nullptr;
  const char *name_ = "";
  OrtType type_ = FLOAT;
  Shape shape_;
};

// What is known when a model is loaded. Absent attributes throw; those with a
// default are optional.
class Info {
 public:
  Info(const OrtKernelInfo *info, const Port *inputs)
      : info_(info), inputs_(inputs) {}

  int64_t integer(const char *name) const;
  int64_t integer(const char *name, int64_t absent) const;
  float number(const char *name) const;
  std::string string(const char *name) const;
  std::vector<int64_t> integers(const char *name) const;
  // Throws unless there are `length` of them.
  std::vector<int64_t> integers(const char *name, size_t length) const;
  std::vector<float> numbers(const char *name) const;
  std::vector<float> numbers(const char *name, size_t length) const;

  // An input that is stored in the model; nothing where it is absent or comes
  // from another operator.
  Input constant(size_t index) const;

 private:
  const OrtKernelInfo *info_;
  const Port *inputs_;
};

// One call of an operator.
class Context {
 public:
  Context(OrtKernelContext *context, const Port *inputs, size_t count)
      : context_(context), inputs_(inputs), count_(count) {}

  // Number of inputs, each variadic one counted.
  size_t inputs() const;
  Input input(size_t index) const;
  // Whether an optional input is given.
  bool has(size_t index) const;

  // Makes an output of this shape; its elements are to be written.
  template <class T>
  T *output(size_t index, const Shape &shape) const {
    return static_cast<T *>(raw_output(index, shape));
  }

  // body(i) for i in [0, total) on ONNX Runtime's threads. An exception of
  // the body is thrown here again.
  template <class Body>
  void parallel(size_t total, const Body &body) const {
    struct Job {
      const Body *body;
      std::string error;
      bool failed;
    } job = {&body, "", false};
    auto call = [](void *data, size_t i) {
      auto *job = static_cast<Job *>(data);
      try {
        (*job->body)(i);
      } catch (const std::exception &error) {
        if (!__atomic_exchange_n(&job->failed, true, __ATOMIC_SEQ_CST))
          job->error = error.what();
      }
    };
    if (total)
      check(api->KernelContext_ParallelFor(context_, call, total, 0, &job));
    if (job.failed) throw Error(job.error);
  }

 private:
  void *raw_output(size_t index, const Shape &shape) const;

  OrtKernelContext *context_;
  const Port *inputs_;
  size_t count_;
};

// Runs body(); what it throws becomes a status.
template <class Kernel, class Body>
OrtStatus *guarded(const Body &body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception &error) {
    std::string message = std::string("surge.") + Kernel::name + ": ";
    return api->CreateStatus(ORT_FAIL, (message + error.what()).c_str());
  } catch (...) {
    return api->CreateStatus(ORT_FAIL, Kernel::name);
  }
}

// The operator `Kernel` in ONNX Runtime's terms.
template <class Kernel>
const OrtCustomOp *make_op() {
  constexpr size_t inputs = sizeof(Kernel::inputs) / sizeof(Port);
  constexpr size_t outputs = sizeof(Kernel::outputs) / sizeof(Port);
  static OrtCustomOp op = [] {
    OrtCustomOp op = {};
    op.version = ORT_API_VERSION;
    op.GetName = [](const OrtCustomOp *) { return Kernel::name; };
    op.GetExecutionProviderType = [](const OrtCustomOp *) -> const char * {
      return nullptr;
    };
    op.GetInputTypeCount = [](const OrtCustomOp *) { return inputs; };
    op.GetInputType = [](const OrtCustomOp *, size_t i) {
      return Kernel::inputs[i].type;
    };
    op.GetInputCharacteristic = [](const OrtCustomOp *, size_t i) {
      return Kernel::inputs[i].kind;
    };
    op.GetOutputTypeCount = [](const OrtCustomOp *) { return outputs; };
    op.GetOutputType = [](const OrtCustomOp *, size_t i) {
      return Kernel::outputs[i].type;
    };
    op.GetOutputCharacteristic = [](const OrtCustomOp *, size_t i) {
      return Kernel::outputs[i].kind;
    };
    op.GetInputMemoryType = [](const OrtCustomOp *, size_t) { return 0; };
    op.GetVariadicInputMinArity = [](const OrtCustomOp *) { return 0; };
    op.GetVariadicInputHomogeneity = [](const OrtCustomOp *) { return 1; };
    op.GetVariadicOutputMinArity = [](const OrtCustomOp *) { return 0; };
    op.GetVariadicOutputHomogeneity = [](const OrtCustomOp *) { return 1; };
    op.GetStartVersion = [](const OrtCustomOp *) { return 1; };
    op.GetEndVersion = [](const OrtCustomOp *) { return INT32_MAX; };
    op.CreateKernelV2 = [](const OrtCustomOp *, const OrtApi *,
                           const OrtKernelInfo *info, void **kernel) {
      return guarded<Kernel>([&] {
        *kernel = new Kernel(Info(info, Kernel::inputs));
      });
    };
    op.KernelComputeV2 = [](void *kernel, OrtKernelContext *raw) {
      return guarded<Kernel>([&] {
        Context context(raw, Kernel::inputs, inputs);
        static_cast<Kernel *>(kernel)->compute(context);
      });
    };
    op.KernelDestroy = [](void *kernel) {
      delete static_cast<Kernel *>(kernel);
    };
    return op;
  }();
  return &op;
}

}  // namespace surge
