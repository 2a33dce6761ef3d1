import numpy as np
import pytest

pytest.importorskip('onnx', reason='needs ONNX')
pytest.importorskip('onnxruntime', reason='needs ONNX Runtime')
pytest.importorskip('surge_runtime', reason='surge_runtime is not installed')

from one_op import run_op, session


def test_one_operator_runs():
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    (y,) = run_op('Identity', [x])
    assert np.array_equal(x, y)


def test_two_sessions_share_the_library():
    first, second = (
        session('Identity', [np.zeros(n, np.float32)]) for n in (1, 2)
    )
    for model, n in ((first, 1), (second, 2)):
        (y,) = model.run(None, {'x0': np.full(n, n, np.float32)})
        assert np.array_equal(y, np.full(n, n))
