"""A whole detector on 64-bit ARM, under qemu, against this machine."""

import json

import numpy as np
import pytest

pytest.importorskip('surge_runtime', reason='needs runtime/ installed')
pytest.importorskip('onnx', reason='needs onnx')

import aarch64
from runtime_files import layered_detector, noise, sealed
from surge_runtime import Detector

CODE = """
import json, sys
from surge_runtime import Detector
detector = Detector(sys.argv[1], threads=1)
found = detector(sys.argv[2])
print(json.dumps([detector.kernels, *(
    a.tolist() for a in (found.boxes, found.scores, found.labels))]))
"""


def test_a_detector_finds_the_same(tmp_path):
    path, image = tmp_path / 'detector.onnx', tmp_path / 'image.png'
    path.write_bytes(sealed(layered_detector()))
    noise(50, 70).save(image)
    root = aarch64.root()
    package = aarch64.build_package(tmp_path)
    ran = aarch64.python(root, package, '-c', CODE, path, image)
    kernels, boxes, scores, labels = json.loads(ran)
    here = Detector(path)(image)
    assert kernels == 'neon'
    assert len(here) > 5
    assert labels == here.labels.tolist()
    np.testing.assert_allclose(scores, here.scores, atol=1e-5)
    np.testing.assert_allclose(boxes, here.boxes, atol=1e-3)
