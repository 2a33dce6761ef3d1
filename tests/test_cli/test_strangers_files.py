"""Files that somebody made to do harm, of each kind that a tool reads.

Nothing of them runs, nothing is fetched, nothing is written beside what the
tool writes, and the tool ends soon, with one line.
"""

import json
import os
import pickle
import resource
import socket
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
import torch
from command_line import python

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
import cv2
from small_detector import small_config

from surge_det.cli.main import main
from surge_det.deploy.formats.digest import digest

CPU_SECONDS = 20


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('config') / 'config.py'
    small_config().dump(path)
    return path


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Call a command, which has to refuse a file in one line."""
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    cv2.imwrite('image.png', np.zeros((48, 64, 3), np.uint8))
    fetched = []

    def connect(*args):
        fetched.append(args)
        raise OSError('no network in this test')

    monkeypatch.setattr(socket.socket, 'connect', connect)
    monkeypatch.setattr(socket, 'getaddrinfo', connect)

    def call(*command, name, says=''):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        cpu, peak = time.process_time(), _peak()
        try:
            status = main([str(each) for each in command])
        except SystemExit as error:
            status = error.code
        assert status not in (0, None)
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if 'error:' in line]
        assert len(lines) == 1, said
        assert 'Traceback' not in said
        assert name in lines[0]
        assert says in lines[0]
        assert len(lines[0]) < 1500
        assert time.process_time() - cpu < CPU_SECONDS
        assert _peak() - peak < 1.5e9
        assert not fetched
        after = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        before.pop(tmp_path / 'work'), after.pop(tmp_path / 'work')
        assert before == after

    call.mark = tmp_path / 'ran'
    return call


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ------------------------------------------------------------ checkpoints


def in_zip(path, payload):
    torch.save({'state_dict': {}, 'meta': {'x': payload}}, path)


def legacy(path, payload):
    torch.save(
        {'state_dict': {}, 'meta': payload},
        path,
        _use_new_zipfile_serialization=False,
    )


def bare(path, payload):
    path.write_bytes(pickle.dumps({'state_dict': payload}))


def compressed(path, payload):
    torch.save({'state_dict': {'w': torch.ones(4)}}, path)
    with zipfile.ZipFile(path) as file:
        entries = {each: file.read(each) for each in file.namelist()}
    name = next(each for each in entries if each.endswith('data/0'))
    entries[name] = bytes(1 << 28)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        for each, content in entries.items():
            file.writestr(each, content)


class _Storages(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, bytes):
            return 'storage', torch.FloatStorage, '0', 'cpu', 10**13
        return None


class _Tensor:
    def __reduce__(self):
        function = torch._utils._rebuild_tensor_v2
        return function, (b'', 0, (10**13,), (1,), False, {})


def claims_much(path, payload):
    torch.save({'state_dict': {'w': torch.ones(4)}}, path)
    with zipfile.ZipFile(path) as file:
        entries = {each: file.read(each) for each in file.namelist()}
    name = next(each for each in entries if each.endswith('data.pkl'))
    with open(path, 'wb') as file:
        _Storages(file, 2).dump({'state_dict': {'w': _Tensor()}})
    entries[name] = path.read_bytes()
    with zipfile.ZipFile(path, 'w') as file:
        for each, content in entries.items():
            file.writestr(each, content)


def shared_lists(path, payload):
    # 2**60 of the last one, if they were written down.
    value = ['x']
    for _ in range(60):
        value = [value, value]
    meta = {'surge_det_version': '0.1.0', 'digest': 'x', 'dataset_meta': value}
    torch.save({'state_dict': {}, 'meta': meta}, path)


def shared_values(path, payload):
    # Four gigabytes, in a file of a kilobyte.
    state = {'w': torch.zeros(1).expand(10**9)}
    meta = {'surge_det_version': '0.1.0', 'digest': 'x'}
    torch.save({'state_dict': state, 'meta': meta}, path)


def torchscript(path, payload):
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), str(path))


CHECKPOINTS = [
    in_zip,
    legacy,
    bare,
    compressed,
    claims_much,
    shared_lists,
    shared_values,
    torchscript,
]


@pytest.mark.filterwarnings('ignore:`torch.jit')
@pytest.mark.parametrize('write', CHECKPOINTS, ids=lambda f: f.__name__)
def test_checkpoints(write, refused, config):
    path = refused.mark.with_name('evil.pth')
    write(path, Calls(os.mkdir, str(refused.mark)))
    for command in (
        ('infer', 'image.png', '--model', path, '--out', 'out'),
        ('infer', 'image.png', '--model', path, '--config', config)
        + ('--out', 'out'),
        ('export', config, path, '--format', 'packed', '--out')
        + ('x.safetensors',),
        ('convert', path, 'x.pth'),
    ):
        refused(*command, name='evil.pth')
    assert not refused.mark.exists()
    assert sorted(os.listdir()) == ['image.png']


@pytest.mark.parametrize('function', [eval, getattr, exec, os.system])
def test_calls_in_checkpoints(function, refused, config):
    path = refused.mark.with_name('evil.pth')
    args = (dict, 'get') if function is getattr else ('1',)
    in_zip(path, Calls(function, *args))
    command = ('export', config, path, '--format', 'pth', '--out', 'x.pth')
    says = 'dict' if function is getattr else function.__name__
    refused(*command, name='evil.pth', says=says)


# ----------------------------------------------------------- packed files


def packed(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def metadata(**entries):
    entries = {
        **{'version': 3, 'config': '', 'dataset_meta': '{}'},
        **{'folded': [], 'shared': {}, 'arithmetic': {}},
        **entries,
    }
    entries['digest'] = digest({}, entries)
    return packed({'__metadata__': {'surge_det.packed': json.dumps(entries)}})


DEEP = '[' * 100_000
SHAPE = {'dtype': 'F32', 'shape': [2**40, 2**40], 'data_offsets': [0, 4]}
PACKED = {
    'header of 2**60 bytes': struct.pack('<Q', 1 << 60) + b'{}',
    'deep header': packed(DEEP.encode()),
    'huge shape': packed({'w': SHAPE}, bytes(4)),
    'deep metadata': packed({'__metadata__': {'surge_det.packed': DEEP}}),
    'number for metadata': packed({'__metadata__': {'surge_det.packed': '3'}}),
    'list for a dict': metadata(shared=[]),
    'program': metadata(config="import os\nos.mkdir('../ran')"),
    'call': metadata(config="model = __import__('os').mkdir('../ran')"),
    'no config': metadata(),
    'deep config': metadata(config=f'model = {DEEP}'),
    'deep classes': metadata(dataset_meta=DEEP),
}


@pytest.mark.parametrize('case', PACKED)
def test_packed_files(case, refused, config):
    pytest.importorskip('safetensors', reason='needs the extra deploy')
    path = refused.mark.with_name('evil.safetensors')
    path.write_bytes(PACKED[case])
    command = ('infer', 'image.png', '--model', path, '--out', 'out')
    refused(*command, name='evil.safetensors')
    refused(*command, '--config', config, name='evil.safetensors')
    assert not refused.mark.exists()


# ------------------------------------------------------ OpenVINO and ONNX


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha">' + ''.join(
    f'<!ENTITY {new} "{f"&{old};" * 10}">'
    for old, new in zip('abcdefghi', 'bcdefghij')
)
EXTERNAL = '<!DOCTYPE x [<!ENTITY j SYSTEM "file:///etc/passwd">'
NETWORK = '<!DOCTYPE x [<!ENTITY j SYSTEM "http://127.0.0.1:9/x">'
TYPES = {'laughs': LAUGHS, 'external': EXTERNAL, 'address': NETWORK}


@pytest.mark.parametrize('case', [*TYPES, 'deep'])
def test_openvino_files(case, refused):
    module = pytest.importorskip(
        'surge_det.deploy.formats.openvino', reason='needs the extra deploy'
    )
    pytest.importorskip('openvino', reason='needs the extra deploy')
    path = refused.mark.with_name('evil.xml')
    path.with_suffix('.bin').write_bytes(b'')
    body = '<net name="&j;" version="11">{}</net>'
    if case == 'deep':
        body = '<a>' * 20_000 + '{}' + '</a>' * 20_000
    text = TYPES.get(case, '') + ']>' * (case in TYPES) + body
    command = ('infer', 'image.png', '--model', path, '--out', 'out')
    for info in ('', f'<digest value="{"0" * 64}" />'):
        path.write_text(text.format(info))
        if info:
            module._seal(path)
        refused(*command, name='evil.xml')


@pytest.mark.parametrize('content', [b'', b'\x08' * 99, b'\x3a\xff\xff\x7f'])
def test_onnx_files(content, refused):
    for package in ('surge_runtime', 'onnx'):
        pytest.importorskip(package, reason='needs runtime/ installed')
    path = refused.mark.with_name('evil.onnx')
    path.write_bytes(content)
    command = ('infer', 'image.png', '--model', path, '--out', 'out')
    refused(*command, name='evil.onnx')


# ----------------------------------------------------- results and run logs


@pytest.mark.parametrize('case', ['call', 'getattr', 'yaml', 'deep', 'other'])
def test_predictions(case, refused, config):
    path = refused.mark.with_name('evil.pkl')
    content = {
        'call': pickle.dumps([{'x': Calls(os.mkdir, str(refused.mark))}]),
        'getattr': pickle.dumps([{'x': Calls(getattr, dict, 'get')}]),
        'yaml': b'!!python/object/apply:os.mkdir [../ran]',
        'deep': b'(' * 1000 + b'l' * 1000,
        'other': pickle.dumps({'a': 1}),
    }
    path.write_bytes(content[case])
    refused(
        *('show-detections', config, path, '--out', 'out'), name='evil.pkl'
    )
    assert not refused.mark.exists()
    assert not os.path.exists('out')


@pytest.mark.parametrize(
    'line', [DEEP, '3', '{"loss": "x", "iter": 1}', '{"loss": [], "iter": {}}']
)
def test_logs(line, refused):
    folder = refused.mark.with_name('run')
    (folder / '1' / 'vis_data').mkdir(parents=True)
    log = folder / '1' / 'vis_data' / 'scalars.json'
    log.write_text(f'{line}\n{{"loss": 1.0, "iter": 1}}\n')
    refused('plot-run', folder, '--out', 'x.png', name='scalars.json')


# ------------------------------------------------- annotations and images


def voc(folder, xml, image_id='a'):
    for name in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / 'Annotations' / 'a.xml').write_text(xml)
    (folder / 'ImageSets' / 'Main' / 'test.txt').write_text(f'{image_id}\n')
    image = np.zeros((48, 64, 3), np.uint8)
    cv2.imwrite(str(folder / 'JPEGImages' / 'a.png'), image)
    data = folder.parent / 'work' / 'data.py'
    data.write_text(
        "custom_imports = dict(imports=['surge_det'])\n"
        "default_scope = 'mmdet'\n"
        "test_dataloader = dict(dataset=dict(type='VOCFormatDataset', "
        f"data_root='{folder}', ann_file='ImageSets/Main/test.txt', "
        "metainfo=dict(classes=('a',)), pipeline=[]))\n"
    )
    return data


OBJECT = (
    '<annotation><object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin>'
    '<xmax>{}</xmax><ymax>9</ymax></bndbox></object></annotation>'
)


@pytest.mark.parametrize('case', [*TYPES, 'deep', 'huge number'])
def test_voc_annotations(case, refused):
    text = {
        'deep': '<annotation>' + '<a>' * 100_000,
        'huge number': OBJECT.format('a', '1' + '0' * 5_000),
    }
    xml = text.get(case) or (TYPES[case] + ']>' + OBJECT.format('&j;', 9))
    data = voc(refused.mark.with_name('voc'), xml)
    refused('check-data', data, name='a.xml')


@pytest.mark.parametrize('name', ['../../ran', '/ran', '..', 'a\\b'])
def test_class_names_that_are_paths(name, refused):
    folder = refused.mark.with_name('voc')
    voc(folder, OBJECT.format(name, 9))
    refused('make-crops', '--source', folder, '--out', 'crops', name='folders')
    assert not os.path.exists('crops')


def coco(folder, content):
    folder.mkdir()
    path = folder / 'test.json'
    path.write_text(content)
    data = folder.parent / 'work' / 'data.py'
    data.write_text(
        "custom_imports = dict(imports=['surge_det'])\n"
        "default_scope = 'mmdet'\n"
        "test_dataloader = dict(dataset=dict(type='COCOFormatDataset', "
        f"data_root='{folder}', ann_file='test.json', "
        "data_prefix=dict(img=''), metainfo=dict(classes=('a',)), "
        'pipeline=[]))\n'
    )
    return data


def images(name):
    image = dict(id=1, file_name=name, width=64, height=48)
    box = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9], area=81)
    return json.dumps(
        dict(
            images=[image],
            annotations=[{**box, 'iscrowd': 0}],
            categories=[dict(id=1, name='a')],
        )
    )


@pytest.mark.parametrize(
    'content',
    [
        DEEP,
        images('a.png').replace('81', '1' + '0' * 5_000),
        images('a.png').replace('"width": 64', '"width": 1e999'),
        images('http://127.0.0.1:9/a.png'),
        images('s3://a/a.png'),
    ],
    ids=['deep', 'huge number', 'infinite', 'address', 'bucket'],
)
def test_coco_annotations(content, refused):
    data = coco(refused.mark.with_name('coco'), content)
    refused('check-data', data, name='test.json')


def png(width, height):
    """A PNG of one grey, small whatever its size."""

    def chunk(kind, content):
        check = struct.pack('>I', zlib.crc32(kind + content))
        return struct.pack('>I', len(content)) + kind + content + check

    packer = zlib.compressobj(9)
    row = bytes(1 + width)
    rows = b''.join(packer.compress(row) for _ in range(height))
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', rows + packer.flush())
        + chunk(b'IEND', b'')
    )


EPS = (
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n'
    b'(../ran) (w) file closefile showpage\n%%EOF\n'
)


IMAGES = """
import resource, sys
import surge_det  # first, as the README says
from surge_det.datasets.checked_images import Loader
from surge_det.datasets.image_folder import ImageFolderDataset

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

dataset = ImageFolderDataset('images')
before = peak()
for load, what in (
    *((Loader().load, path) for path, _ in dataset.samples),
    *((dataset.__getitem__, index) for index in (0, 1)),
):
    try:
        load(what)
        print('loaded')
    except ValueError as error:
        print(error)
assert peak() - before < 500, peak() - before
"""


def test_images_that_are_bombs_or_programs(tmp_path):
    folder = tmp_path / 'images' / 'a'
    folder.mkdir(parents=True)
    (folder / 'a.png').write_bytes(png(15_000, 15_000))
    assert (folder / 'a.png').stat().st_size < 1e6
    (folder / 'b.jpg').write_bytes(EPS)
    env = {k: v for k, v in os.environ.items() if 'OPENCV' not in k}
    said = python(IMAGES, cwd=tmp_path, env=env).splitlines()
    for line, name in zip(said, ('a.png', 'b.jpg') * 2, strict=True):
        assert f'{name} cannot be read as an image' in line
    assert not (tmp_path / 'ran').exists()


def test_links_and_paths_above_are_read_only(tmp_path, monkeypatch, capsys):
    # An image may lie elsewhere. What is written has a name of its own.
    folder = tmp_path / 'coco'
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    image = np.zeros((48, 64, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'outside.png'), image)
    data = coco(folder, images('../outside.png'))
    (folder / 'link.png').symlink_to(tmp_path / 'outside.png')
    assert main(['check-data', str(data)]) in (0, None)
    before = sorted(tmp_path.rglob('*'))
    predictions = tmp_path / 'predictions.pkl'
    boxes = dict(
        bboxes=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.long),
    )
    predictions.write_bytes(
        pickle.dumps([dict(img_id=1, pred_instances=boxes)])
    )
    out = tmp_path / 'pictures'
    main(['show-detections', str(data), str(predictions), '--out', str(out)])
    assert sorted(path.name for path in out.iterdir()) == [
        'confusion.png',
        'detections.png',
        'outside.png',
    ]
    assert set(tmp_path.rglob('*')) - set(before) == {
        *(predictions, out, *out.iterdir())
    }
