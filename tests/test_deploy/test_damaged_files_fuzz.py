"""Files of detectors, damaged: refused, or the same boxes; no other end."""

import json
import re

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from load_worker import Worker
from mmengine.registry import init_default_scope
from small_detector import small_one_stage, train

from surge_det.core.binarization import binarization_of
from surge_det.deploy import FORMATS
from surge_det.deploy.formats.digest import digest
from surge_det.deploy.trained import build_detector

PACKAGES = {
    'checkpoint': (),
    'pth': (),
    'packed': ('safetensors',),
    'onnx': ('onnx', 'onnxruntime', 'surge_runtime'),
    'openvino': ('openvino',),
}
REFUSED = {'ValueError', 'FileNotFoundError'}
META = {'classes': ('a', 'b', 'c'), 'palette': [(1, 2, 3)] * 3}
fuzz = settings(
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ]
)


@pytest.fixture(scope='module')
def model():
    init_default_scope('mmdet')
    model = train(build_detector(small_one_stage()))
    model.dataset_meta = META
    return model


@pytest.fixture(scope='module')
def worker():
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(scope='module', params=PACKAGES)
def files(request, model, worker, tmp_path_factory):
    """The first is what is loaded; and what comes of it."""
    for package in PACKAGES[request.param]:
        pytest.importorskip(package, reason='needs the extra deploy')
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == 'checkpoint':
        # As training writes it, without a digest.
        files = [folder / 'epoch_1.pth']
        meta = {'cfg': model.cfg.pretty_text, 'dataset_meta': META}
        meta['binarized'] = binarization_of(model)
        state = model.state_dict()
        torch.save({'meta': meta, 'state_dict': state}, files[0])
    else:
        format = FORMATS[request.param]
        files = format.save(model, folder / f'x{format.suffix}')
        files.sort(key=lambda path: path.suffix != format.suffix)
    kind, boxes = worker(files[0])
    assert kind == 'boxes', boxes
    return files, boxes


# Most of a file is weights: its ends, where all else is, come as often.
places = (
    st.floats(0, 1, exclude_max=True)
    | st.integers(0, 500)
    | st.integers(-500, -1)
)
edits = st.tuples(
    st.sampled_from(['flip', 'cut', 'insert', 'drop', 'repeat', 'zero']),
    places,
    st.integers(1, 255),
)


def edit(content, what, place, number):
    if isinstance(place, float):
        place = int(place * len(content))
    place %= max(len(content), 1)
    head, rest = content[:place], content[place:]
    if what == 'flip':
        return head + bytes(b ^ number for b in rest[:1]) + rest[1:]
    return (
        head
        + {
            'cut': b'',
            'insert': bytes([number]) * number + rest,
            'drop': rest[number:],
            'repeat': rest[:number] + rest,
            'zero': bytes(min(number, len(rest))) + rest[number:],
        }[what]
    )


@fuzz
@given(
    which=st.integers(0, 1), changes=st.lists(edits, min_size=1, max_size=3)
)
def test_damaged_files(which, changes, files, worker, tmp_path):
    paths, boxes = files
    for path in paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    target = tmp_path / paths[which % len(paths)].name
    content = target.read_bytes()
    for change in changes:
        content = edit(content, *change)
    target.write_bytes(content)
    kind, said = worker(tmp_path / paths[0].name)
    event(kind)
    if kind == 'boxes':
        assert said == boxes
    else:
        assert kind in REFUSED, said
        assert target.stem in said
        assert '\n' not in said


# What a config is made of, and what it should not be made of.
values = st.sampled_from(
    [
        *('None', '0', '1', '-1', '3', '64', '4096', '99999', '10**9'),
        *('1e9', '0.5', 'inf', 'nan', 'True', 'False', "''", "'x'", "'mmdet'"),
        *('[]', '{}', '()', '[0, 1]', '[1] * 9', '(1, 2)', "['a.b*']"),
        *("dict(type='nms')", "dict(type='BN')", "dict(type='SURGEConv2d')"),
        *("'ResNet'", "'FPN'", "'RetinaHead'", "'GLIP'", "'SwinTransformer'"),
        *("'../x'", "'http://x'", "'eval'", 'x', '__import__("os")', '"""'),
        *(')', '\\', '\n', '#', "dict(type='CameraMotionCompensation')"),
    ]
)
# A value after its key, and a key.
_VALUE = re.compile(r"(?<==)('[^']*'|[\w.+-]+)(?=[,)\s])")
_KEY = re.compile(r'\w+(?==)')


@fuzz
@given(data=st.data())
def test_configs_of_strangers(data, model, worker, tmp_path, packed):
    """A config that was changed, with the right digest."""
    tensors, entries = packed
    text = entries['config']
    for _ in range(data.draw(st.integers(1, 3))):
        spans = [found.span() for found in _VALUE.finditer(text)]
        new = data.draw(values)
        if data.draw(st.integers(0, 4)) == 0:
            spans = [found.span() for found in _KEY.finditer(text)]
            names = sorted(set(_KEY.findall(text)))
            new = data.draw(st.sampled_from(names))
        start, end = data.draw(st.sampled_from(spans))
        text = text[:start] + new + text[end:]
    changed = {**entries, 'config': text}
    changed['digest'] = digest(tensors, changed)
    path = tmp_path / 'x.safetensors'
    save = pytest.importorskip('safetensors.torch').save_file
    save(tensors, path, {'surge_det.packed': json.dumps(changed)})
    kind, said = worker(path)
    event(kind)
    # It may be one that is allowed.
    if kind not in ('boxes', 'no boxes'):
        assert kind in REFUSED, said
        assert path.name in said
        assert '\n' not in said


@pytest.fixture(scope='module')
def packed(model, tmp_path_factory):
    safetensors = pytest.importorskip('safetensors')
    path = tmp_path_factory.mktemp('packed') / 'x.safetensors'
    FORMATS['packed'].save(model, path)
    with safetensors.safe_open(path, 'pt') as file:
        entries = json.loads(file.metadata()['surge_det.packed'])
        del entries['digest']
        return {n: file.get_tensor(n) for n in file.keys()}, entries  # noqa: SIM118
