import numpy as np
import pytest

pytest.importorskip('onnx', reason='needs ONNX')
pytest.importorskip('onnxruntime', reason='needs ONNX Runtime')
pytest.importorskip('surge_runtime', reason='surge_runtime is not installed')

from one_op import session


def roi_align(channels, strides):
    inputs = [np.zeros((1, 4)), *(np.zeros((1, 1, 1, 1)) for _ in strides)]
    return session(
        'RoIAlign',
        [x.astype(np.float32) for x in inputs],
        strides=strides,
        output_size=2,
        sampling_ratio=1,
        finest_scale=56.0,
        aligned=1,
    )


def test_sessions_share_the_library():
    roi = np.array([[0, 0, 4, 4]], np.float32)
    for number in (1, 2):
        model = roi_align(number, [1.0] * number)
        maps = {
            f'x{i + 1}': np.full((1, 8, 8, number), number, np.float32)
            for i in range(number)
        }
        (y,) = model.run(None, {'x0': roi} | maps)
        assert np.array_equal(y, np.full((1, 2, 2, number), number))


def test_wrong_number_of_inputs_is_told():
    model = roi_align(1, [4.0, 8.0])
    feed = {
        'x0': np.zeros((1, 4), np.float32),
        'x1': np.zeros((1, 4, 4, 8), np.float32),
        'x2': np.zeros((1, 2, 2, 7), np.float32),
    }
    with pytest.raises(
        Exception, match=r'surge.RoIAlign: input maps has shape \(1, 2, 2, 7\)'
    ):
        model.run(None, feed)


def test_type_of_an_input_is_told():
    with pytest.raises(Exception, match='tensor'):
        session(
            'RoIAlign',
            [np.zeros((1, 4), np.int64), np.zeros((1, 1, 1, 1), np.float32)],
            strides=[1.0],
            output_size=2,
            sampling_ratio=1,
            finest_scale=56.0,
            aligned=1,
        )
