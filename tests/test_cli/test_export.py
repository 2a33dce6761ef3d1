"""export.py, test.py and infer.py on a small detector."""

import contextlib
import functools
import importlib.util
import io
import json
import logging
import re
import sys

import numpy as np
import pytest
import torch
from command_line import ROOT

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('safetensors', reason='needs the extra deploy')

import mmcv
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from small_detector import small_config, train

from surge_det.cli.export import SUFFIXES
from surge_det.cli.main import main
from surge_det.core.binarization import binarization_of
from surge_det.datasets.shapes import prepare_shapes
from surge_det.deploy import FORMATS, load_detector
from surge_det.deploy.trained import build_detector


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with config.py, epoch_1.pth and shapes/."""
    folder = tmp_path_factory.mktemp('trained')
    init_default_scope('mmdet')
    prepare_shapes(folder, 8, 6, 0)
    demo = Config.fromfile(ROOT / 'configs' / 'surge_faster_rcnn_r18_demo.py')
    cfg = small_config()
    cfg.test_dataloader = demo.test_dataloader
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.test_dataloader.dataset.data_root = f'{folder / "shapes"}/'
    cfg.model.roi_head.bbox_head.num_classes = 5
    cfg.dump(folder / 'config.py')
    model = train(build_detector(cfg))
    meta = {'dataset_meta': dict(demo.metainfo), 'cfg': cfg.pretty_text}
    meta['binarized'] = binarization_of(model)
    state = model.state_dict()
    torch.save({'state_dict': state, 'meta': meta}, folder / 'epoch_1.pth')
    return folder


@pytest.fixture(scope='module')
def packed(trained):
    """The packed file beside the checkpoint, and what was printed."""
    args = [trained / 'config.py', trained / 'epoch_1.pth']
    main(['export', *args, '--format', 'packed'])
    return trained / 'epoch_1.safetensors'


@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
    """A function: an engine's file, and what its export has printed."""

    @functools.cache
    def export(kind):
        needed = {'onnx': 'surge_runtime', 'openvino': 'openvino'}[kind]
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f'needs {needed}')
        folder = tmp_path_factory.mktemp(kind)
        path = (folder / 'detector').with_suffix(SUFFIXES[kind])
        args = [trained / 'config.py', trained / 'epoch_1.pth']
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main(['export', *args, '--format', kind, '--out', path])
        return path, out.getvalue()

    return export


@pytest.fixture(scope='module')
def evaluated(trained, packed, exported, tmp_path_factory):
    """A function: a format's file, and what `evaluate` says of it."""

    @functools.cache
    def evaluate_once(kind):
        if kind in ('onnx', 'openvino'):
            path, _ = exported(kind)
        else:
            path = packed if kind == 'packed' else trained / 'epoch_1.pth'
        return path, *evaluate(trained, path, tmp_path_factory.mktemp(kind))

    return evaluate_once


def printed(capsys, trained, *args):
    config, checkpoint = trained / 'config.py', trained / 'epoch_1.pth'
    main(['export', str(config), str(checkpoint), *map(str, args)])
    return capsys.readouterr().out


def test_preflight_and_sizes(trained, capsys, tmp_path):
    path = tmp_path / 'deep' / 'detector.safetensors'
    out = printed(capsys, trained, '--format', 'packed', '--out', path)
    line = next(x for x in out.splitlines() if 'layer4.1.conv2' in x)
    size, float_size = 128 * (128 * 9 // 8 + 4), 4 * 128 * 128 * 9
    assert re.split(r'  +', line) == [
        'backbone.layer4.1.conv2',
        '1-bit',
        '1/1',
        'conv2d on scaled signs',
        f'{size:,}',
        f'{float_size:,}',
    ]
    parts = out[out.index('\npart ') :]
    for part in ('backbone', 'neck', 'rpn_head', 'roi_head', 'total'):
        assert re.search(rf'^{part} +[\d,]+ +[\d,]+ +1/\d', parts, re.M)
    checkpoint = (trained / 'epoch_1.pth').stat().st_size
    assert f'epoch_1.pth: {checkpoint:,} bytes' in out
    assert f'detector.safetensors: {path.stat().st_size:,} bytes' in out


def test_pth(trained, capsys):
    # Nothing is logged between the tables.
    logged = logging.StreamHandler(io.StringIO())
    MMLogger.get_current_instance().addHandler(logged)
    try:
        out = printed(capsys, trained, '--format', 'pth')
    finally:
        MMLogger.get_current_instance().removeHandler(logged)
    assert 'Loads checkpoint' not in out + logged.stream.getvalue()
    assert 'epoch_1.deploy.pth' in out
    state = torch.load(trained / 'epoch_1.deploy.pth', weights_only=True)
    assert state['meta']['dataset_meta']['classes'][0] == 'circle'


def test_options_of_the_config_are_stored(trained, capsys, tmp_path):
    path = tmp_path / 'x.safetensors'
    printed(
        capsys,
        trained,
        *('--format', 'packed', '--out', path),
        *('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.4'),
    )
    assert load_detector(path).cfg.model.test_cfg.rcnn.score_thr == 0.4


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['nowhere.py', 'x.pth', '--format', 'pth'], 'nowhere.py'),
        (['config.py', 'nowhere.pth', '--format', 'pth'], 'nowhere.pth'),
        (['config.py', 'config.py', '--format', 'pth'], 'no checkpoint'),
        (['config.py', 'epoch_1.pth', '--format', 'ncnn'], 'openvino'),
        (
            ['config.py', 'epoch_1.pth', '--format', 'packed']
            + ['--out', 'x.pth'],
            r"x\.pth': the name must end in \.safetensors",
        ),
        (
            ['config.py', 'epoch_1.pth', '--format', 'pth']
            + ['--out', 'epoch_1.pth'],
            'another name',
        ),
        (
            ['config.py', 'epoch_1.pth', '--format', 'pth', '--out', 'x.pth'],
            r"x\.pth' is a folder",
        ),
        (
            ['config.py', 'epoch_1.pth', '--format', 'packed']
            + ['--cfg-options']
            + ['model.neck.conv_cfg.binarize_activation=False'],
            r'epoch_1\.pth: was trained with another config: \d+ layers',
        ),
        (
            ['config.py', 'http://host/x.pth', '--format', 'packed'],
            '--out is missing: CHECKPOINT is an address',
        ),
        (
            ['config.py', 'bccd', '--format', 'onnx'],
            '--out is missing: CHECKPOINT is a shipped detector',
        ),
        (
            ['config.py', 'written.onnx', '--format', 'packed'],
            r'written\.onnx: .*not one of the format onnx',
        ),
        (
            ['broken.py', 'epoch_1.pth', '--format', 'packed'],
            r"config 'broken\.py': SyntaxError: ",
        ),
        (
            ['config.py', 'epoch_1.pth', '--format', 'packed']
            + ['--cfg-options', 'model.roi_head.bbox_head.num_classes=9'],
            r'(?s)epoch_1\.pth: .*fc_cls',
        ),
    ],
    ids=lambda value: ' '.join(value)[:60] if isinstance(value, list) else '',
)
def test_refused_before_anything_is_written(
    args, said, trained, monkeypatch, capsys
):
    monkeypatch.chdir(trained)
    (trained / 'x.pth').mkdir(exist_ok=True)
    (trained / 'broken.py').write_text('model = dict(')
    (trained / 'written.onnx').touch()
    before = sorted(trained.iterdir())
    with pytest.raises(SystemExit) as error:
        main(['export', *args])
    assert error.value.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert sorted(trained.iterdir()) == before


def test_a_layer_that_cannot_be_exported(
    trained, monkeypatch, capsys, tmp_path
):
    state = torch.load(trained / 'epoch_1.pth', weights_only=True)
    state['state_dict']['neck.fpn_convs.0.conv.weight'][0] = float('nan')
    broken = tmp_path / 'broken.pth'
    torch.save(state, broken)
    args = [trained / 'config.py', broken, '--format', 'packed']
    with pytest.raises(SystemExit) as error:
        main(['export', *args])
    assert error.value.code == 2
    printed = capsys.readouterr()
    # The table first, so that all else is seen beside it.
    assert 'backbone.layer1.0.conv1' in printed.out
    assert 'neck.fpn_convs.0.conv (1-bit): weight has values' in printed.err
    assert 'remedy: ' in printed.err
    assert list(tmp_path.iterdir()) == [broken]


def test_layers_that_gain_nothing_are_named(trained, capsys, tmp_path):
    if importlib.util.find_spec('openvino') is None:
        pytest.skip('needs the extra deploy')
    state = torch.load(trained / 'epoch_1.pth', weights_only=True)
    # Such a detector's has the same values.
    del state['meta']['cfg'], state['meta']['binarized']
    torch.save(state, tmp_path / 'x.pth')
    main(
        ['export', str(trained / 'config.py'), str(tmp_path / 'x.pth')]
        + ['--format', 'openvino', '--out', str(tmp_path / 'x.xml')]
        + ['--cfg-options', 'model.neck.conv_cfg.binarize_activation=False']
    )
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if 'fpn_convs.0.conv ' in x)
    assert re.split(r'  +', line)[1:4] == [
        'weights 1-bit',
        '32/32',
        'Convolution',
    ]
    assert re.search(
        r'\d+ binarized layers gain nothing .* neck\.\w+\.0\.conv, ', out
    )
    assert 'backbone' not in re.search('gain nothing .*', out)[0]


def test_without_the_extra(trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(SystemExit) as error:
        printed(capsys, trained, '--format', 'packed')
    assert error.value.code == 2
    err = capsys.readouterr().err
    assert 'safetensors' in err
    assert 'pip install "surge_det[deploy]"' in err


def evaluate(trained, checkpoint, work_dir, config=None):
    """Run test.py; return its figure and the predictions' file."""
    predictions = work_dir / 'predictions.pkl'
    main(
        ['test', str(config or trained / 'config.py'), str(checkpoint)]
        + ['--work-dir', str(work_dir), '--out', str(predictions)]
    )
    (log,) = work_dir.glob('*/*.json')
    return json.loads(log.read_text())['pascal_voc/mAP'], predictions


def test_evaluation_of_a_packed_file(evaluated):
    """mmdet's evaluator gives the checkpoint's figure."""
    _, figure, predictions = evaluated('pth')
    _, packed_figure, packed_predictions = evaluated('packed')
    assert figure == packed_figure
    same_predictions(packed_predictions, predictions)


def test_evaluation_refuses_what_is_damaged(packed, trained, tmp_path, capsys):
    damaged = tmp_path / 'x.safetensors'
    damaged.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(SystemExit) as error:
        evaluate(trained, damaged, tmp_path)
    assert error.value.code == 2
    assert 'x.safetensors: no safetensors file' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('renamed.pth', 'renamed.pth: no checkpoint of this config: '),
        ('text.pth', 'text.pth: no checkpoint, or a part of one'),
        ('part.pth', 'part.pth: half a file, or none of torch'),
    ],
)
def test_evaluation_refuses_a_checkpoint_of_something_else(
    name, said, trained, tmp_path, capsys
):
    whole = trained / 'epoch_1.pth'
    if name == 'renamed.pth':
        state = torch.load(whole, weights_only=True)
        state['state_dict'] = {
            key.replace('backbone.', 'trunk.'): value
            for key, value in state['state_dict'].items()
        }
        torch.save(state, tmp_path / name)
    elif name == 'text.pth':
        (tmp_path / name).write_text('edited')
    else:
        size = whole.stat().st_size // 2
        (tmp_path / name).write_bytes(whole.read_bytes()[:size])
    with pytest.raises(SystemExit) as error:
        evaluate(trained, tmp_path / name, tmp_path)
    assert error.value.code == 2
    said_last = capsys.readouterr().err.splitlines()[-1]
    assert said in said_last
    assert len(said_last) < 600


def test_faults_that_are_not_the_files_keep_their_traceback(trained, tmp_path):
    with pytest.raises(ValueError, match='interval'):
        main(
            ['test', str(trained / 'config.py'), str(trained / 'epoch_1.pth')]
            + ['--work-dir', str(tmp_path), '--cfg-options']
            + ['default_hooks.logger.interval=0']
        )


@pytest.mark.parametrize(
    ('kind', 'operation', 'files'),
    [
        ('onnx', 'BinaryConv', ['detector.onnx']),
        (
            'openvino',
            'BinaryConvolution',
            ['detector.xml', 'detector.bin', 'detector.roi.bin'],
        ),
    ],
)
def test_engines(kind, operation, files, trained, exported, images, tmp_path):
    path, out = exported(kind)
    line = next(x for x in out.splitlines() if 'layer4.1.conv2' in x)
    assert f'  {operation}  ' in line
    for name in files:
        size = path.with_name(name).stat().st_size
        assert f'{name}: {size:,} bytes' in out
    boxes = []
    for model in (path, trained / 'epoch_1.pth'):
        folder = tmp_path / model.stem
        config = [] if model == path else [str(trained / 'config.py')]
        main(
            ['infer', str(images), '--model', str(model), '--out', str(folder)]
            + ['--config', *config] * bool(config)
        )
        assert len(list((folder / 'vis').iterdir())) == 2
        boxes.append(
            [
                box
                for name in ('a', 'b')
                for box in load(folder / 'preds' / f'{name}.json')['bboxes']
            ]
        )
    first, second = map(np.array, boxes)
    assert first.shape == second.shape
    # Where rounding differs, a value at a threshold may come to lie on its
    # other side, and move boxes of its image, or their places in the list.
    same = np.isclose(first[:, None], second, atol=0.1).all(-1).any(1)
    assert same.mean() > 0.4


@pytest.fixture(scope='module')
def start(trained, tmp_path_factory):
    """A config that starts training elsewhere and averages weights."""
    folder = tmp_path_factory.mktemp('start')
    cfg = Config.fromfile(trained / 'config.py')
    other = build_detector(cfg)
    other.init_weights()
    torch.save({'state_dict': other.state_dict()}, folder / 'other.pth')
    cfg.load_from = str(folder / 'other.pth')
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.dump(folder / 'config.py')
    return folder / 'config.py'


def same_predictions(one, other):
    one, other = load(one), load(other)
    assert len(one) == len(other) == 6
    for a, b in zip(one, other):
        for key in ('bboxes', 'scores', 'labels'):
            found = a['pred_instances'][key]
            assert len(found)
            assert torch.equal(found, b['pred_instances'][key])


@pytest.mark.parametrize('kind', ['pth', 'packed', 'onnx', 'openvino'])
def test_what_a_config_starts_from_is_not_loaded_over_a_file(
    kind, trained, evaluated, start, tmp_path
):
    path, figure, plain = evaluated(kind)
    found, started = evaluate(trained, path, tmp_path, start)
    assert found == figure
    same_predictions(plain, started)


@pytest.mark.parametrize('name', ['x.bin', 'x.roi.bin', 'x.roi.xml'])
def test_a_checkpoint_is_not_overwritten(name, trained, tmp_path, capsys):
    checkpoint = tmp_path / name
    checkpoint.write_bytes((trained / 'epoch_1.pth').read_bytes())
    before = checkpoint.read_bytes()
    with pytest.raises(SystemExit):
        main(
            ['export', str(trained / 'config.py'), str(checkpoint), '--format']
            + ['openvino', '--out', str(tmp_path / 'x.xml')]
        )
    assert f'{name}' in capsys.readouterr().err
    assert checkpoint.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ('name', 'options', 'said'),
    [
        ('x.xml', ['--launcher', 'slurm'], 'in one process'),
        ('x.onnx', ['--launcher', 'slurm'], 'in one process'),
        ('x.onnx', ['--tta'], 'is whole'),
    ],
)
def test_what_an_engine_cannot_do(
    name, options, said, trained, tmp_path, capsys
):
    path = tmp_path / name
    path.write_text('')
    with pytest.raises(SystemExit):
        main(['test', str(trained / 'config.py'), str(path), *options])
    assert said in capsys.readouterr().err


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    rng = np.random.default_rng(0)
    for name in ('a.jpg', 'b.PNG'):
        image = rng.integers(0, 256, (48, 64, 3), np.uint8)
        mmcv.imwrite(image, str(folder / name))
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.mark.parametrize('name', ['epoch_1.safetensors', 'epoch_1.pth'])
def test_infer_draws(name, packed, trained, images, tmp_path, capsys):
    out = tmp_path / 'out'
    config = [] if name.endswith('tensors') else ['--config', 'config.py']
    config = [str(trained / x) if '.' in x else x for x in config]
    main(
        ['infer', str(images), '--model', str(trained / name), *config]
        + ['--out', str(out), '--score-thr', '0', '--device', 'cpu']
    )
    printed = capsys.readouterr().out
    assert sorted(p.name for p in (out / 'vis').iterdir()) == [
        'a.jpg',
        'b.PNG',
    ]
    assert sorted(p.name for p in (out / 'preds').iterdir()) == [
        'a.json',
        'b.json',
    ]
    count = int(re.search(r'(\d+) detections with score above 0', printed)[1])
    assert count > 0
    assert '100%' in printed
    drawn = mmcv.imread(str(out / 'vis' / 'a.jpg'))
    assert (drawn != mmcv.imread(str(images / 'a.jpg'))).any()


def test_infer_takes_an_image_once(packed, images, tmp_path, capsys):
    given = [images / 'a.jpg', images, images.parent / 'images' / 'a.jpg']
    given.append(images / '..' / 'images' / 'b.PNG')
    args = ['--model', packed, '--out', tmp_path / 'out', '--device', 'cpu']
    main(['infer', *given, *args])
    assert 'in 2 image(s)' in capsys.readouterr().out


def test_infer_tells_of_images_that_fail(
    packed, trained, images, tmp_path, capsys
):
    (images / 'aa.jpg').write_bytes(b'')
    (images / 'ab.jpg').write_text('no image')
    mmcv.imwrite(np.zeros((20, 30), 'uint8'), str(images / 'ac.pgm'))
    mmcv.imwrite(np.full((20, 30), 4095, 'uint16'), str(images / 'ad.png'))
    out = tmp_path / 'out'
    with pytest.raises(SystemExit) as error:
        main(['infer', str(images), '--model', str(packed), '--out', str(out)])
    assert error.value.code == 2
    printed = capsys.readouterr()
    assert 'in 2 image(s)' in printed.out
    assert '4 of 6 images failed, the others are done' in printed.err
    for name, why in (
        ('aa.jpg', 'cannot be read as an image'),
        ('ab.jpg', 'cannot be read as an image'),
        ('ac.pgm', 'no picture can be written as .pgm'),
        ('ad.png', 'has more than 8 bits a colour'),
    ):
        assert f'{images / name}: {why}' in printed.err
    found = sorted(p.name for p in (out / 'vis').iterdir())
    assert found == ['a.jpg', 'b.PNG']


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['nowhere', '--model', 'epoch_1.pth'], "'nowhere'"),
        (
            ['a/x.jpg', '--model', 'epoch_1.pth', '--out', 'a/x.jpg/y'],
            "--out: 'a/x.jpg' is a file: a folder is allowed",
        ),
        (
            ['a/x.jpg', '--model', 'epoch_1.pth', '--out', 'broken.py'],
            "--out: 'broken.py' is a file: a folder is allowed",
        ),
        (['shapes', '--model', 'epoch_1.pth'], 'shapes has no images'),
        (['config.py', '--model', 'x.xml'], "'x.xml'"),
        (['config.py', '--model', 'bare.pth'], 'holds no config'),
        (
            ['a/x.jpg', '--model', 'epoch_1.pth', '--config', 'broken.py'],
            "config 'broken.py': SyntaxError",
        ),
        (
            ['a/x.jpg', 'b/x.png', '--model', 'epoch_1.pth'],
            "several images are named 'x': what is written of one would "
            'replace the other: a/x.jpg, b/x.png; name one',
        ),
        (
            ['config.py', '--model', 'epoch_1.pth', '--config', 'x.py'],
            "'x.py' does not exist",
        ),
        (
            ['config.py', '--model', 'epoch_1.pth', '--score-thr', '2'],
            '0 to 1',
        ),
    ],
    ids=lambda value: ' '.join(value)[:60] if isinstance(value, list) else '',
)
def test_infer_refuses(args, said, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    (trained / 'broken.py').write_text('model = dict(')
    state = torch.load('epoch_1.pth', weights_only=True)
    torch.save({'state_dict': state['state_dict']}, 'bare.pth')
    for name in ('a/x.jpg', 'b/x.png'):
        mmcv.imwrite(np.zeros((8, 8, 3), np.uint8), name)
    with pytest.raises(SystemExit) as error:
        main(['infer', *args])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_the_command_knows_all_formats():
    assert {k: v.suffix for k, v in FORMATS.items()} == SUFFIXES
