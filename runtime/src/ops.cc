// The library's entry, and the glue of op.h.
#include "op.h"

namespace surge {

const OrtApi *api = nullptr;

// The operators of domain "surge", version 1.
const OrtCustomOp *binary_conv_op();
const OrtCustomOp *dense_boxes_op();
const OrtCustomOp *pool_op();
const OrtCustomOp *preprocess_op();
const OrtCustomOp *proposals_op();
const OrtCustomOp *roi_align_op();
const OrtCustomOp *roi_boxes_op();

static const OrtCustomOp *(*const operators[])() = {
    binary_conv_op,
    dense_boxes_op,
    pool_op,
    preprocess_op,
    proposals_op,
    roi_align_op,
    roi_boxes_op,
};

std::string text(const Shape &shape) {
  std::string joined;
  for (int64_t length : shape)
    joined += (joined.empty() ? "" : ", ") +
              (length < 0 ? std::string("any") : std::to_string(length));
  return "(" + joined + ")";
}

void check(OrtStatus *status) {
  if (!status) return;
  std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw Error(message);
}

// Whether a call succeeded, where failure means "not there".
static bool succeeded(OrtStatus *status) {
  if (status) api->ReleaseStatus(status);
  return !status;
}

Input::Input(const OrtValue *value, const char *name)
    : value_(value), name_(name) {
  if (!value) return;
  OrtTensorTypeAndShapeInfo *info;
  check(api->GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  OrtStatus *status = api->GetTensorElementType(info, &type_);
  if (!status) status = api->GetDimensionsCount(info, &rank);
  if (!status) {
    shape_.resize(rank);
    status = api->GetDimensions(info, shape_.data(), rank);
  }
  api->ReleaseTensorTypeAndShapeInfo(info);
  check(status);
}

int64_t Input::size() const {
  int64_t product = 1;
  for (int64_t length : shape_) product *= length;
  return product;
}

const void *Input::raw(OrtType type) const {
  if (!value_) throw Error(std::string("input ") + name_ + " is missing");
  if (type_ != type)
    throw Error(std::string("input ") + name_ + " has element type " +
                std::to_string(type_) + ", not " + std::to_string(type));
  void *data;
  check(api->GetTensorMutableData(const_cast<OrtValue *>(value_), &data));
  return data;
}

void Input::expect(const Shape &shape) const {
  bool same = value_ && shape.size() == shape_.size();
  for (size_t i = 0; same && i < shape.size(); ++i)
    same = shape[i] < 0 || shape[i] == shape_[i];
  if (!same)
    throw Error(std::string("input ") + name_ + " has shape " +
                (value_ ? text(shape_) : "none") + ", not " + text(shape));
}

template <class T>
static std::vector<T> list(const OrtKernelInfo *info, const char *name,
                           OrtStatus *(*get)(const OrtKernelInfo *,
                                             const char *, T *, size_t *)) {
  size_t size = 0;
  if (!succeeded(get(info, name, nullptr, &size)))
    throw Error(std::string("attribute ") + name + " is missing");
  std::vector<T> values(size);
  if (size) check(get(info, name, values.data(), &size));
  return values;
}

template <class T>
static std::vector<T> of_length(std::vector<T> values, const char *name,
                                size_t length) {
  if (values.size() != length)
    throw Error(std::string("attribute ") + name + " has " +
                std::to_string(values.size()) + " values, not " +
                std::to_string(length));
  return values;
}

int64_t Info::integer(const char *name) const {
  int64_t value;
  if (!succeeded(api->KernelInfoGetAttribute_int64(info_, name, &value)))
    throw Error(std::string("attribute ") + name + " is missing");
  return value;
}

int64_t Info::integer(const char *name, int64_t absent) const {
  int64_t value;
  bool there = succeeded(api->KernelInfoGetAttribute_int64(info_, name, &value));
  return there ? value : absent;
}

float Info::number(const char *name) const {
  float value;
  if (!succeeded(api->KernelInfoGetAttribute_float(info_, name, &value)))
    throw Error(std::string("attribute ") + name + " is missing");
  return value;
}

std::string Info::string(const char *name) const {
  auto characters = list<char>(info_, name, api->KernelInfoGetAttribute_string);
  // The last one is the zero.
  return characters.empty() ? "" : std::string(characters.data());
}

std::vector<int64_t> Info::integers(const char *name) const {
  return list<int64_t>(info_, name, api->KernelInfoGetAttributeArray_int64);
}

std::vector<int64_t> Info::integers(const char *name, size_t length) const {
  return of_length(integers(name), name, length);
}

std::vector<float> Info::numbers(const char *name) const {
  return list<float>(info_, name, api->KernelInfoGetAttributeArray_float);
}

std::vector<float> Info::numbers(const char *name, size_t length) const {
  return of_length(numbers(name), name, length);
}

Input Info::constant(size_t index) const {
  int is_constant = 0;
  const OrtValue *value = nullptr;
  check(api->KernelInfoGetConstantInput_tensor(info_, index, &is_constant,
                                               &value));
  return is_constant ? Input(value, inputs_[index].name) : Input();
}

size_t Context::inputs() const {
  size_t count;
  check(api->KernelContext_GetInputCount(context_, &count));
  return count;
}

bool Context::has(size_t index) const {
  const OrtValue *value = nullptr;
  check(api->KernelContext_GetInput(context_, index, &value));
  return value;
}

Input Context::input(size_t index) const {
  const OrtValue *value = nullptr;
  check(api->KernelContext_GetInput(context_, index, &value));
  return Input(value, inputs_[index < count_ ? index : count_ - 1].name);
}

void *Context::raw_output(size_t index, const Shape &shape) const {
  OrtValue *value = nullptr;
  check(api->KernelContext_GetOutput(context_, index, shape.data(),
                                     shape.size(), &value));
  void *data;
  check(api->GetTensorMutableData(value, &data));
  return data;
}

}  // namespace surge

extern "C" __attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(
    OrtSessionOptions *options, const OrtApiBase *base) {
  surge::api = base->GetApi(ORT_API_VERSION);
  // Too old an ONNX Runtime has no table to report with; the package asks for
  // 1.17 or newer.
  if (!surge::api) return nullptr;
  // Sessions keep a pointer to the domain, so it lives as long as the process.
  static OrtCustomOpDomain *domain = nullptr;
  if (!domain) {
    if (auto *status = surge::api->CreateCustomOpDomain("surge", &domain))
      return status;
    for (auto *op : surge::operators)
      if (auto *status = surge::api->CustomOpDomain_Add(domain, op()))
        return status;
  }
  return surge::api->AddCustomOpDomain(options, domain);
}
