// The part of ONNX Runtime's C interface that the operators use.
//
// ONNX Runtime hands a table of function pointers to a library of operators.
// New versions only append to that table, so a function's place in it is its
// name for all time, and this short list replaces the header, which wheels do
// not carry. Version 17 (ONNX Runtime 1.17) is the lowest that has all of it.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOp;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;

constexpr uint32_t ORT_API_VERSION = 17;

// Element types of a tensor (ONNXTensorElementDataType).
enum OrtType : int { FLOAT = 1, UINT8 = 2, INT64 = 7 };

enum OrtErrorCode : int { ORT_FAIL = 1 };

enum OrtCharacteristic : int { REQUIRED = 0, OPTIONAL = 1, VARIADIC = 2 };

// The table. What stands between the functions used here is left unnamed.
struct OrtApi {
  OrtStatus *(*CreateStatus)(OrtErrorCode, const char *);
  void *before_2[1];
  const char *(*GetErrorMessage)(const OrtStatus *);
  void *before_26[23];
  OrtStatus *(*CreateCustomOpDomain)(const char *, OrtCustomOpDomain **);
  OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *, const OrtCustomOp *);
  OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *, OrtCustomOpDomain *);
  void *before_51[22];
  OrtStatus *(*GetTensorMutableData)(OrtValue *, void **);
  void *before_60[8];
  OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *, OrtType
      *);
  OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *, size_t *);
  OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *, int64_t *,
      size_t);
  void *before_65[2];
  OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *,
      OrtTensorTypeAndShapeInfo **);
  void *before_85[19];
  OrtStatus *(*KernelInfoGetAttribute_float)(const OrtKernelInfo *, const char
      *, float *);
  OrtStatus *(*KernelInfoGetAttribute_int64)(const OrtKernelInfo *, const char
      *, int64_t *);
  OrtStatus *(*KernelInfoGetAttribute_string)(const OrtKernelInfo *, const char
      *, char *, size_t *);
  OrtStatus *(*KernelContext_GetInputCount)(const OrtKernelContext *, size_t *);
  void *before_90[1];
  OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *, size_t, const
      OrtValue **);
  OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *, size_t, const
      int64_t *, size_t, OrtValue **);
  void *before_93[1];
  void (*ReleaseStatus)(OrtStatus *);
  void *before_99[5];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *);
  void *before_162[62];
  OrtStatus *(*KernelInfoGetAttributeArray_float)(const OrtKernelInfo *, const
      char *, float *, size_t *);
  OrtStatus *(*KernelInfoGetAttributeArray_int64)(const OrtKernelInfo *, const
      char *, int64_t *, size_t *);
  void *before_249[85];
  OrtStatus *(*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo *, size_t,
      int *, const OrtValue **);
  void *before_274[24];
  OrtStatus *(*KernelContext_ParallelFor)(const OrtKernelContext *, void
      (*)(void *, size_t), size_t, size_t, void *);
};

#define SURGE_PLACE(function, place) \
  static_assert(offsetof(OrtApi, function) == place * sizeof(void *))
SURGE_PLACE(AddCustomOpDomain, 28);
SURGE_PLACE(GetTensorTypeAndShape, 65);
SURGE_PLACE(KernelContext_GetOutput, 91);
SURGE_PLACE(ReleaseStatus, 93);
SURGE_PLACE(KernelInfoGetAttributeArray_int64, 163);
SURGE_PLACE(KernelInfoGetConstantInput_tensor, 249);
SURGE_PLACE(KernelContext_ParallelFor, 274);
#undef SURGE_PLACE

struct OrtApiBase {
  const OrtApi *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;
  void *(*CreateKernel)(const OrtCustomOp *, const OrtApi *,
                        const OrtKernelInfo *);
  const char *(*GetName)(const OrtCustomOp *);
  const char *(*GetExecutionProviderType)(const OrtCustomOp *);
  OrtType (*GetInputType)(const OrtCustomOp *, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp *);
  OrtType (*GetOutputType)(const OrtCustomOp *, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp *);
  void (*KernelCompute)(void *, OrtKernelContext *);
  void (*KernelDestroy)(void *);
  OrtCharacteristic (*GetInputCharacteristic)(const OrtCustomOp *, size_t);
  OrtCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp *, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp *, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp *);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
  OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, const OrtApi *,
                               const OrtKernelInfo *, void **);
  OrtStatus *(*KernelComputeV2)(void *, OrtKernelContext *);
  OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *,
                                   OrtShapeInferContext *);
  int (*GetStartVersion)(const OrtCustomOp *);
  int (*GetEndVersion)(const OrtCustomOp *);
  // Read by later versions than ours; always null.
  void *later[4];
};

}  // extern "C"
