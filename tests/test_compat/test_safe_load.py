import inspect
import io
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from command_line import python
from torch.utils.data import Dataset

pytest.importorskip('mmengine')

from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint

from surge_det import compat
from surge_det.compat.safe_load import (
    _PLAIN,
    UnsafeCheckpointError,
    _allowed_globals,
    load_predictions,
    safe_load,
)

compat.install()


class _Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, mode='tensor'):
        return {'loss': self.layer(torch.stack(x)).square().mean()}


class _Data(Dataset):
    metainfo = {'classes': ('a', 'b'), 'palette': [(1, 2, 3), (4, 5, 6)]}

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {'x': torch.ones(2) * i}


def _runner(folder, name, epochs, resume_from=None):
    return Runner(
        model=_Model(),
        work_dir=str(folder),
        train_dataloader={
            'dataset': _Data(),
            'batch_size': 2,
            'num_workers': 0,
            'sampler': {'type': 'DefaultSampler', 'shuffle': True},
            'collate_fn': {'type': 'pseudo_collate'},
        },
        optim_wrapper={
            'type': 'OptimWrapper',
            'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9},
            'clip_grad': {'max_norm': 1.0},
        },
        train_cfg={'by_epoch': True, 'max_epochs': epochs},
        param_scheduler=[
            {
                'type': 'LinearLR',
                'start_factor': 0.1,
                'by_epoch': False,
                'end': 2,
            },
            {'type': 'MultiStepLR', 'milestones': [1]},
            # Pickles its annealing function by getattr.
            {
                'type': 'OneCycleLR',
                'eta_max': 0.1,
                'total_steps': 9,
                'by_epoch': False,
            },
        ],
        default_hooks={'logger': {'type': 'LoggerHook', 'interval': 1}},
        custom_hooks=[{'type': 'EMAHook'}],
        load_from=resume_from,
        resume=resume_from is not None,
        randomness={'seed': 0},
        default_scope='mmengine',
        experiment_name=name,
        log_level='WARNING',
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    _runner(folder, 'surge_compat_trained', epochs=1).train()
    return folder / 'epoch_1.pth'


def _unsafe(path):
    return torch.load(path, weights_only=False)


def _load(path):
    return CheckpointLoader.load_checkpoint(str(path), 'cpu')


def test_runners_checkpoint_loads_whole(trained):
    loaded, expected = _load(trained), _unsafe(trained)
    assert loaded.keys() == expected.keys()
    assert loaded['meta'] == expected['meta']
    scalars = loaded['message_hub']['log_scalars']
    wanted = expected['message_hub']['log_scalars']
    assert scalars.keys() == wanted.keys()
    assert 'train/loss' in scalars
    for key, buffer in scalars.items():
        assert isinstance(buffer, HistoryBuffer)
        for mine, theirs in zip(buffer.data, wanted[key].data):
            np.testing.assert_array_equal(mine, theirs)
        assert buffer.statistics('mean') == wanted[key].statistics('mean')
    mine, theirs = (c['param_schedulers'][2] for c in (loaded, expected))
    assert mine == theirs
    for key, value in expected['state_dict'].items():
        assert torch.equal(loaded['state_dict'][key], value)


def test_loading_leaves_torch_as_it_was(trained):
    def _mine():
        return {
            entry
            for entry in torch.serialization.get_safe_globals()
            if 'numpy' in str(entry) or 'getattr' in str(entry)
        }

    load, before = torch.load, _mine()
    _load(trained)
    assert torch.load is load
    assert _mine() == before


@pytest.mark.parametrize('package', ['numpy.core', 'numpy._core'])
def test_names_of_both_numpy_generations(trained, tmp_path, package):
    path = tmp_path / 'other_numpy.pth'
    with zipfile.ZipFile(trained) as old, zipfile.ZipFile(path, 'w') as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith('data.pkl'):
                assert b'multiarray' in data
                for name in (b'cnumpy._core.', b'cnumpy.core.'):
                    data = data.replace(name, f'c{package}.'.encode())
            new.writestr(info.filename, data)
    loss = _load(path)['message_hub']['log_scalars']['train/loss']
    wanted = _load(trained)['message_hub']['log_scalars']['train/loss']
    assert loss.mean() == wanted.mean()


class _Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _write(path, payload):
    torch.save({'state_dict': {}, 'meta': {'x': payload}}, path)
    return str(path)


@pytest.mark.parametrize(
    ('function', 'args', 'named'),
    [
        (os.system, ('true',), 'system'),
        (eval, ('1',), 'eval'),
        (getattr, (HistoryBuffer, '__init__'), 'getattr.*__init__'),
        (getattr, (HistoryBuffer, 'register_statistics'), 'getattr'),
        (getattr, (torch.Tensor, 'numpy'), 'getattr.*numpy'),
        (Config, (), 'Config'),
    ],
)
def test_anything_else_is_refused(tmp_path, function, args, named):
    path = _write(tmp_path / 'evil.pth', _Calls(function, *args))
    with pytest.raises(UnsafeCheckpointError, match=f'evil.pth.*{named}'):
        _load(path)


def test_refused_payload_does_not_run(tmp_path, monkeypatch):
    # The variable lifts weights_only wherever a caller has not set it.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    trace = tmp_path / 'ran'
    path = _write(tmp_path / 'evil.pth', _Calls(os.mkdir, str(trace)))
    with pytest.raises(UnsafeCheckpointError, match='weights_only=False'):
        _load(path)
    assert not trace.exists()
    _unsafe(path)
    assert trace.exists()


def test_someone_elses_getattr_does_not_widen_ours(tmp_path):
    path = _write(
        tmp_path / 'evil.pth', _Calls(getattr, torch.Tensor, 'numpy')
    )
    serialization = torch.serialization
    before = list(serialization.get_safe_globals())
    serialization.add_safe_globals([getattr])
    try:
        with pytest.raises(UnsafeCheckpointError, match='getattr'):
            _load(path)
        assert getattr in serialization.get_safe_globals()
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def test_downloads_are_as_safe(tmp_path):
    _write(tmp_path / 'evil.pth', _Calls(eval, '1'))
    torch.save({'state_dict': {'w': torch.ones(1)}}, tmp_path / 'good.pth')
    load = mmengine_checkpoint.load_from_http
    url = 'https://example.invalid/'  # already in model_dir, never fetched
    with pytest.raises(UnsafeCheckpointError, match='example.*eval'):
        load(url + 'evil.pth', model_dir=str(tmp_path))
    loaded = load(url + 'good.pth', model_dir=str(tmp_path))
    assert loaded['state_dict']['w'].item() == 1


def test_no_scheme_has_a_way_round():
    for prefix, loader in CheckpointLoader._schemes.items():
        names = inspect.getclosurevars(loader).globals
        if 'torch' in names:
            assert names['torch'].load is safe_load, prefix
        assert '_safe_torch_load' not in names or (
            names['_safe_torch_load'] is safe_load
        ), prefix


def test_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        _load(tmp_path / 'nothing.pth')


@pytest.mark.parametrize('meta', [[1], 'text', 3])
def test_a_meta_of_another_type_is_refused(tmp_path, meta):
    path = tmp_path / 'odd.pth'
    torch.save({'state_dict': {}, 'meta': meta}, path)
    kind = type(meta).__name__
    with pytest.raises(ValueError, match=f'odd.pth: its meta is a {kind}, a'):
        _load(path)
    torch.save({'meta': torch.ones(1)}, path)
    assert _load(path)['meta'] == 1


def test_stored_config_is_not_executed_on_resume(trained, tmp_path):
    trace = tmp_path / 'ran'
    code = f"open({str(trace)!r}, 'w').close()\n"
    Config.fromstring(code, file_format='.py')
    assert trace.exists(), 'the payload must be one that works'
    trace.unlink()

    checkpoint = _unsafe(trained)
    checkpoint['meta'].update(config=code, cfg=code)
    checkpoint['message_hub']['runtime_info']['cfg'] = code
    path = tmp_path / 'evil.pth'
    torch.save(checkpoint, path)
    runner = _runner(tmp_path / 'work', 'surge_compat_resumed', 2, str(path))
    runner.train()
    assert runner.epoch == 2
    assert not trace.exists()
    assert _load(path)['meta']['config_not_run'] == code


@pytest.mark.parametrize('name', ['x.safetensors', 'x.pth', 'x.onnx', 'x.xml'])
def test_exported_detectors_are_refused(name, tmp_path):
    # torch reads safetensors, and none of the 1-bit layers' keys would fit.
    save = pytest.importorskip('safetensors.torch').save
    path = tmp_path / name
    entries = {'surge_det.packed': '{"version": 2}'}
    path.write_bytes(save({'layer.bits': torch.ones(2)}, entries))
    model = _Model()
    with pytest.raises(ValueError, match=rf'{name} is .*DetInferencer'):
        load_checkpoint(model, str(path))


@pytest.mark.skipif(
    torch.__version__ < (2, 14), reason='an older torch may refuse them'
)
def test_plain_safetensors_are_torchs(tmp_path):
    save = pytest.importorskip('safetensors.torch').save_file
    path = tmp_path / 'weights.safetensors'
    save({'layer.bias': torch.ones(2)}, path, {'format': 'pt'})
    assert safe_load(path)['layer.bias'].tolist() == [1, 1]


def test_no_byte_of_an_archives_directory_leads_elsewhere(tmp_path):
    path = tmp_path / 'x.pth'
    weights = torch.arange(3.0)
    torch.save({'state_dict': {'w': weights}}, path)
    whole, refused = path.read_bytes(), 0
    for place in range(1, 400):
        for bits in (1, 16, 128):
            damaged = bytearray(whole)
            damaged[-place] ^= bits
            path.write_bytes(damaged)
            try:
                found = safe_load(path)['state_dict']['w']
            except UnicodeError:
                raise
            except (RuntimeError, ValueError):
                refused += 1
            else:
                # Not what happened to be in memory.
                assert torch.equal(found, weights), (place, bits)
    assert refused > 600


class _Changed:
    """Pickles as a NumPy type whose state is set."""

    def __init__(self, code, state):
        self.code, self.state = code, state

    def __reduce__(self):
        return np.dtype, (self.code, False, True), self.state


class _Scalar:
    """Pickles as a NumPy scalar of a type of its own."""

    def __init__(self, dtype, data):
        self.call = dtype, data

    def __reduce__(self):
        from numpy._core.multiarray import scalar

        return scalar, self.call


@pytest.mark.parametrize(
    'value',
    [np.str_('späť'), np.float32(0.1), np.int64(-3), np.arange(3.0)],
)
def test_numbers_and_texts_of_numpy(tmp_path, value):
    found = _load(_write(tmp_path / 'file.pth', value))['meta']['x']
    assert type(found) is type(value)
    np.testing.assert_array_equal(found, value)


def test_a_numpy_type_is_not_changed_later(tmp_path):
    # Of 4,000 bytes instead of 20, or with a field far outside.
    larger = 3, '<', None, None, None, 4000, 4, 8
    field = {'a': (np.dtype('f8'), 1000)}
    outside = 3, '|', None, ('a',), field, 8, 1, 0
    text = _Scalar(_Changed('U5', larger), 'hello'.encode('utf-32-le'))
    assert _load(_write(tmp_path / 'a.pth', text))['meta']['x'] == 'hello'
    number = _Scalar(_Changed('f8', outside), np.float64(0.5).tobytes())
    found = _load(_write(tmp_path / 'b.pth', number))['meta']['x']
    assert found == 0.5
    assert found.dtype.fields is None
    for code in ('O', 'V8', 'M8'):
        path = _write(tmp_path / 'c.pth', _Changed(code, larger))
        with pytest.raises(UnsafeCheckpointError, match='numpy.dtype'):
            _load(path)


def test_predictions_are_read_and_nothing_else(tmp_path):
    path = tmp_path / 'predictions.pkl'
    boxes = torch.arange(8.0).reshape(2, 4)[:, 1:]
    image = {
        'img_path': 'a.jpg',
        'scale_factor': (0.5, np.float64(0.5)),
        'pred_instances': {
            'bboxes': boxes,
            'labels': torch.zeros(1).expand(9),
            'masks': [{'counts': b'xy'}],
        },
        'sizes': np.arange(3),
    }
    path.write_bytes(pickle.dumps([image]))
    (found,) = load_predictions(path)
    assert torch.equal(found['pred_instances']['bboxes'], boxes)
    np.testing.assert_array_equal(found['sizes'], image['sizes'])
    assert found['scale_factor'] == image['scale_factor']

    refused = ValueError, UnsafeCheckpointError
    trace = tmp_path / 'ran'
    storage = io.BytesIO()
    torch.save(_Calls(os.mkdir, str(trace)), storage)
    for payload in (
        _Calls(os.mkdir, str(trace)),
        _Calls(torch.load, str(path)),
        _Calls(torch.storage._load_from_bytes, storage.getvalue()),
        torch.zeros(1).expand(10**13, 4),
        _Changed('O', None),
    ):
        path.write_bytes(pickle.dumps([{'x': payload}]))
        with pytest.raises(refused, match=r'predictions\.pkl'):
            load_predictions(path)
    assert not trace.exists()
    for content in (b'', b'yaml: 1', pickle.dumps({}), pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(refused, match=r'predictions\.pkl'):
            load_predictions(path)


def test_arrays_of_texts_are_refused_in_one_line(tmp_path):
    path = _write(tmp_path / 'file.pth', np.array(['a', 'b']))
    with pytest.raises(UnsafeCheckpointError, match='file.pth'):
        _load(path)


# Reads files, and each value in them, in a process that may die of it.
READS = """
import pickle, resource, sys
import numpy as np
import torch
import surge_det  # first, as the README says
from mmengine.logging import HistoryBuffer
from surge_det.compat.safe_load import (
    _PLAIN, _allowed_globals, load_predictions, safe_load
)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def guards():
    found = {**_allowed_globals(), **_PLAIN}
    states = [vars(each) for each in found.values()]
    function = torch._utils._rebuild_tensor_v2
    states += [vars(function), function.__defaults__, function.__name__]
    return repr((states, HistoryBuffer._statistics_methods))

HistoryBuffer()  # fills its statistics
guarded = guards()
for path in sys.stdin.read().split():
    load = load_predictions if path.endswith('.pkl') else safe_load
    before = peak()
    try:
        print(path, 'loaded', repr(repr(load(path)))[:99], flush=True)
    except Exception as error:
        print(path, 'refused', type(error).__name__, flush=True)
    assert guards() == guarded, path
    assert peak() - before < 100, (path, peak() - before)
"""


def _reads(paths):
    said = python(READS, input='\n'.join(map(str, paths)))
    lines = [line.split(' ', 2) for line in said.splitlines()]
    return {path: (what, found) for path, what, found in lines}


def _opcodes(value):
    return pickle.dumps(value, 2)[2:-1]


def _file(path, opcodes):
    """Write a pickle: predictions, or a checkpoint of the older format."""
    if path.suffix == '.pkl':
        path.write_bytes(b'\x80\x02](}X\x01\0\0\0x' + opcodes + b'se.')
        return
    head = (0x1950A86A20F9469CFC6C, 1001, {})
    path.write_bytes(
        b''.join(pickle.dumps(each, 2) for each in head)
        + (b'\x80\x02}X\x01\0\0\0x' + opcodes + b's.')
        + pickle.dumps([], 2)
    )


def _nested(depth):
    value = [0.0, 0.0]
    for _ in range(depth):
        value = [value, value]
    return value


_POINTER = b'A' * 8
_CALLS = [
    (),
    ('O',),
    ('U999999999',),
    (_POINTER,),
    (2**40,),
    ((1,), 'O', _POINTER),
    ((2**40,), 'f8', _POINTER),
    (np.ndarray, (1,), 'O'),
    (np.ndarray, (2**40,), b'f8'),
    (np.dtype('f8'), b''),
    (np.dtype('f8'), [1.0]),
    (np.dtype('f8'), np.zeros(3)),
    (HistoryBuffer, '__setstate__'),
    (_nested(24), _nested(24)),
    ([1.0], [1]),
    (torch.zeros(2), 0, (9,), (1,), False, {}),
    (None, None, None, None, None, None),
]
_STATES = [
    {'target': OrderedDict},
    (None, {'target': OrderedDict}),
    (None, {'__defaults__': (1,), '__name__': 'x'}),
    {'statistics_methods': {'mean': OrderedDict}},
    {'_statistics_methods': {'mean': OrderedDict}},
    (1, (1,), np.dtype('f8'), False, b''),
    (1, (2**40,), np.dtype('f8'), False, b'A' * 8),
    (3, '|', None, None, None, 4000, 4, 8),
]


def test_allowed_names_with_other_arguments_and_states(tmp_path):
    names = sorted({*_allowed_globals(), *_PLAIN})
    ends = {
        **{f'R{i}': _opcodes(args) + b'R' for i, args in enumerate(_CALLS)},
        **{f'N{i}': _opcodes(args) + b'\x81' for i, args in enumerate(_CALLS)},
        **{f'B{i}': _opcodes(each) + b'b' for i, each in enumerate(_STATES)},
        # Made without arguments, then changed.
        **{
            f'{how}B{i}': b')' + code + _opcodes(each) + b'b'
            for how, code in (('R', b'R'), ('N', b'\x81'))
            for i, each in enumerate(_STATES)
        },
    }
    paths = []
    for number, name in enumerate(names):
        for end, opcodes in ends.items():
            for suffix in ('.pth', '.pkl'):
                paths.append(tmp_path / f'{number}{end}{suffix}')
                start = 'c{}\n{}\n'.format(*name.rsplit('.', 1)).encode()
                _file(paths[-1], start + opcodes)
    found = _reads(paths)
    assert len(found) == len(paths)
    for suffix in ('.pth', '.pkl'):
        ends = {found[each][0] for each in found if each.endswith(suffix)}
        assert ends == {'loaded', 'refused'}
    errors = {kind for what, kind in found.values() if what == 'refused'}
    assert errors <= {'UnsafeCheckpointError', 'ValueError', 'RuntimeError'}
    array = names.index('numpy.ndarray')
    for path, (what, _) in found.items():
        if os.path.basename(path).startswith((f'{array}R', f'{array}N')):
            assert what == 'refused', path
