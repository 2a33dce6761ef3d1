"""The wheel for 64-bit ARM, and a whole detector under qemu."""

import json
import zipfile

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


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    pytest.importorskip('ziglang', reason='needs the wheel ziglang')
    return aarch64.build_wheel(tmp_path_factory.mktemp('aarch64'))


def test_wheel(wheel):
    assert wheel.name.endswith('-py3-none-manylinux2014_aarch64.whl')
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read('surge_runtime/libsurge_ops.so')
        assert 'surge_runtime/cli.py' in archive.namelist()
    # ELF's number of the machine.
    assert int.from_bytes(library[18:20], 'little') == 183


def test_a_detector_finds_the_same(wheel, tmp_path):
    root = aarch64.root()
    path, image = tmp_path / 'detector.onnx', tmp_path / 'image.png'
    path.write_bytes(sealed(layered_detector()))
    noise(50, 70).save(image)
    package = tmp_path / 'package'
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(package)
    ran = aarch64.python(root, package, '-c', CODE, path, image)
    kernels, boxes, scores, labels = json.loads(ran)
    here = Detector(path)(image)
    assert kernels == 'neon'
    assert len(here) > 5
    assert labels == here.labels.tolist()
    np.testing.assert_allclose(scores, here.scores, atol=1e-5)
    np.testing.assert_allclose(boxes, here.boxes, atol=1e-3)
