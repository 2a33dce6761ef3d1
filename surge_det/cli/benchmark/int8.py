"""The int8 twin of a detector's file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from surge_det.deploy.extra import require

_TOOL = 'onnxruntime.quantization'
# What ONNX Runtime computes with whole numbers in this form.
_OPERATORS = 'Conv', 'MatMul', 'Gemm'


def quantized(
    data: bytes,
    session: Callable[[bytes], object],
    images: Iterable[np.ndarray],
) -> bytes:
    """Quantize a float detector after training, by ONNX Runtime's tool.

    Activations have 8 bits, with least and largest value as seen on images;
    weights 7, by channel: with 8, AVX2's products of a CPU without VNNI
    would saturate. The form is that of QOperator: QDQ took 1.2 to 1.4 times
    as long, see ``docs/results/runtime.md``.

    Args:
        data: The ONNX model, with one input ``image``.
        session: Makes ONNX Runtime's session of a model.
        images: uint8 (H, W, 3), to calibrate with.
    """
    onnx = require('onnx')
    quantization = require(_TOOL)
    calibrate = require(f'{_TOOL}.calibrate')
    model = onnx.load_from_string(data)
    constants = {value.name for value in model.graph.initializer}
    names = {
        name
        for node in model.graph.node
        if node.op_type in _OPERATORS
        for name in [*node.input, *node.output]
        if name and name not in constants
    }
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in sorted(names)
    ]
    observed = onnx.load_from_string(data)
    observed.graph.output.extend(values)
    # The tool finds no types behind operators that it does not know, and
    # asks for what fuses operators, which the export has done.
    model.graph.value_info.extend(values)
    require(f'{_TOOL}.quant_utils').add_pre_process_metadata(model)
    run = session(observed.SerializeToString()).run
    ranges = dict.fromkeys(sorted(names), (np.inf, -np.inf))
    for image in images:
        for name, value in zip(ranges, run([*ranges], {'image': image})):
            least, most = ranges[name]
            if value.size:
                ranges[name] = (
                    min(least, value.min()),
                    max(most, value.max()),
                )
    seen = {
        name: tuple(np.array(bound, np.float32) for bound in bounds)
        for name, bounds in ranges.items()
    }
    kind = quantization.CalibrationMethod.MinMax
    with tempfile.TemporaryDirectory() as folder:
        cache, out = Path(folder, 'ranges.json'), Path(folder, 'int8.onnx')
        calibrate.save_tensors_data(calibrate.TensorsData(kind, seen), cache)
        quantization.quantize_static(
            model,
            out,
            None,
            quant_format=quantization.QuantFormat.QOperator,
            op_types_to_quantize=[*_OPERATORS],
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibration_cache_path=cache,
        )
        return out.read_bytes()
