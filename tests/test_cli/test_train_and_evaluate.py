"""The command-line tools, run as a user runs them."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import ROOT, TIMEOUT, environment, run, tool

pytest.importorskip('mmdet', reason='needs the toolbox')

from surge_det.datasets.shapes import prepare_shapes

CONFIG = ROOT / 'configs' / 'surge_faster_rcnn_r18_demo.py'
SMALL = [
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'train_cfg.max_epochs=1',
    'default_hooks.logger.interval=1',
    'model.test_cfg.rcnn.score_thr=0.0',
]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    prepare_shapes(folder, 8, 6, 0)
    return folder


@pytest.fixture(scope='module')
def trained(root, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work')
    out = tool(
        *('train.py', CONFIG, '--work-dir', work_dir),
        *('--cfg-options', *SMALL),
        root=root,
    )
    return work_dir, out


def final_map(out):
    return re.findall(r'pascal_voc/mAP: ([\d.]+)', out)[-1]


# Blocks of the log of a training or test.
BLOCKS = ('System environment:', 'Config:\n', 'Hooks will be executed')


def test_config_and_environment_are_in_the_file_only(trained):
    work_dir, out = trained
    (path,) = work_dir.glob('*/*.log')
    log = path.read_text()
    assert f'Environment and config: {path}' in out
    for block in BLOCKS:
        assert block in log
        assert block not in out
    assert 'Using env variable' not in out
    assert len(out.splitlines()) < 50
    for news in ('param_scheduler.0.end=100', 'Epoch(val)', 'pascal_voc/mAP'):
        assert news in out
        assert news in log


def test_what_only_looks_says_what_was_asked(trained, root, tmp_path):
    work_dir, _ = trained
    images = root / 'shapes' / 'JPEGImages'
    args = [images, '--model', work_dir / 'epoch_1.pth', '--out', tmp_path]
    out = tool('infer.py', *args, root=root)
    assert 'mmengine - ' not in out
    assert 'detections with score above 0.3 in 14 image(s)' in out
    # But a box without area, which is left out, is told.
    copy = tmp_path / 'shapes'
    shutil.copytree(root / 'shapes', copy)
    name = (copy / 'ImageSets/Main/train.txt').read_text().split()[0]
    boxes = copy / 'Annotations' / f'{name}.xml'
    text = re.sub(
        r'<xmin>\d+(</xmin>.*?<xmax>)(\d+)',
        r'<xmin>\2\1\2',
        boxes.read_text(),
        count=1,
        flags=re.S,
    )
    boxes.write_text(text)
    out = tool('preflight.py', CONFIG, root=tmp_path)
    assert out.count('mmengine - ') == 1
    assert 'mmengine - WARNING' in out
    assert '1 without area' in out


def test_training_logs_ags(trained):
    work_dir, out = trained
    assert 'AGS lambda of 19 layers' in out
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    records = [json.loads(line) for line in path.read_text().splitlines()]
    scales = [r for r in records if 'ags/scale/rpn_head.rpn_conv.0.conv' in r]
    assert len(scales) == 2
    assert len([k for k in scales[0] if k.startswith('ags/scale/')]) == 19
    lines = [line for line in out.splitlines() if 'Epoch(train)' in line]
    assert all('ags/' not in line for line in lines)


def test_evaluation_gives_trainings_figure(trained, root, tmp_path):
    work_dir, out = trained
    predictions = tmp_path / 'predictions.pkl'
    tested = tool(
        *('test.py', CONFIG, work_dir / 'epoch_1.pth', '--out', predictions),
        *('--work-dir', tmp_path, '--show-dir', 'shown', '--verbose'),
        *('--cfg-options', *SMALL),
        root=root,
    )
    assert final_map(tested) == final_map(out)
    assert all(block in tested for block in BLOCKS)
    with open(predictions, 'rb') as file:
        assert len(pickle.load(file)) == 6
    assert len(list(tmp_path.glob('*/shown/*'))) == 6
    pictures = tmp_path / 'pictures'
    args = [CONFIG, predictions, '--out', pictures]
    tool('show_detections.py', *args, root=root)
    assert (pictures / 'detections.png').stat().st_size > 10_000
    curve = tmp_path / 'curve.png'
    tool('plot_run.py', work_dir, '--out', curve, root=root)
    assert curve.stat().st_size > 5_000


def test_resume_goes_on_where_the_run_stopped(trained, root, tmp_path):
    work_dir, _ = trained
    copy = tmp_path / 'work'
    shutil.copytree(work_dir, copy)
    (copy / 'last_checkpoint').write_text(str(copy / 'epoch_1.pth'))
    out = tool(
        *('train.py', CONFIG, '--work-dir', copy, '--resume'),
        *('--cfg-options', *SMALL, 'train_cfg.max_epochs=2'),
        root=root,
    )
    assert 'Epoch(train) [2]' in out
    assert 'Epoch(train) [1]' not in out
    first = torch.load(work_dir / 'epoch_1.pth', weights_only=False)
    second = torch.load(copy / 'epoch_2.pth', weights_only=False)
    assert second['meta']['iter'] == 4
    name = 'backbone.layer1.0.conv1.'
    for state in (first['state_dict'], second['state_dict']):
        assert not torch.equal(
            state[name + 'weight'], state[name + 'aux_weight']
        )


def test_sigterm_writes_a_checkpoint_and_has_a_status(root, tmp_path):
    log = tmp_path / 'log'
    command = [sys.executable, '-m', 'surge_det', 'train', CONFIG]
    command += ['--work-dir', tmp_path / 'work', '--cfg-options', *SMALL]
    command += ['train_dataloader.num_workers=2', 'train_cfg.max_epochs=99']
    # No checkpoint but that of the signal.
    command += ['train_cfg.val_interval=99']
    command += ['default_hooks.checkpoint.interval=99']
    with open(log, 'w') as output:
        training = subprocess.Popen(
            list(map(str, command)),
            env=environment(root),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + TIMEOUT
    while '[1][1/' not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    # All processes of a job get it.
    os.killpg(training.pid, signal.SIGTERM)
    try:
        assert training.wait(TIMEOUT) == 143, log.read_text()[-4000:]
    finally:
        training.kill()
    (path,) = (tmp_path / 'work').glob('*.pth')
    assert f'SIGTERM: training ends, --resume goes on from {path}' in (
        log.read_text()
    )


def test_amp_keeps_ags(root, tmp_path):
    out = tool(
        *('train.py', CONFIG, '--amp', '--work-dir', tmp_path),
        *('--cfg-options', *SMALL, 'train_cfg.val_interval=5'),
        root=root,
    )
    assert 'AGS lambda of 19 layers' in out
    (log,) = tmp_path.glob('*/*.log')
    assert 'AGSAmpOptimWrapper' in log.read_text()
    assert 'not finite' not in out


@pytest.mark.isa
def test_two_processes(root, tmp_path):
    out = run(
        *('bash', ROOT / 'tools' / 'dist_train.sh', CONFIG, 2),
        *('--work-dir', tmp_path, '--auto-scale-lr'),
        *('--cfg-options', *SMALL, 'train_dataloader.batch_size=2'),
        'auto_scale_lr.base_batch_size=2',
        root=root,
    )
    assert 'LR is set based on batch size' in out
    assert final_map(out)
    state = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    assert state['meta']['iter'] == 2
    tested = run(
        *('bash', ROOT / 'tools' / 'dist_test.sh', CONFIG),
        *(tmp_path / 'epoch_1.pth', 2, '--work-dir', tmp_path / 'test'),
        *('--cfg-options', *SMALL),
        root=root,
    )
    assert final_map(tested) == final_map(out)


def test_missing_data_is_told_first(tmp_path):
    out = tool('train.py', CONFIG, root=tmp_path / 'nowhere', ok=False)
    # Python's own warnings about the toolbox's imports aside.
    first = out[out.index('error:') :].splitlines()[0]
    assert 'System environment' not in out
    assert os.path.join('nowhere', 'shapes') in first
    assert 'SURGE_DATA_ROOT' in out
    assert 'make-demo-data' in out
    assert 'Traceback' not in out


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['missing.py'], 'missing.py'),
        ([CONFIG, '--cfg-options', 'optim_wrapper.type=X', '--amp'], "'X'"),
        (
            [
                CONFIG,
                '--cfg-options',
                'model.backbone.init_cfg.type=Pretrained',
            ]
            + ['model.backbone.init_cfg.checkpoint=missing.pth'],
            'error: cannot load the pretrained weights of the config '
            "(model.backbone.init_cfg.checkpoint='missing.pth')",
        ),
        (
            [CONFIG, '--cfg-options', 'load_from=missing.pth'],
            "error: cannot load 'missing.pth'",
        ),
    ],
)
def test_train_refuses_with_a_message(args, said, root):
    out = tool('train.py', *args, root=root, ok=False)
    assert 'Traceback' not in out
    assert said in out


def test_missing_checkpoint_is_told(root):
    out = tool('test.py', CONFIG, 'missing.pth', root=root, ok=False)
    assert 'Traceback' not in out
    assert 'missing.pth' in out


def stock_tool(name):
    import mmdet

    path = Path(mmdet.__file__).parent / '.mim' / 'tools' / name
    if not path.is_file():
        pytest.skip(f'this installation of mmdet ships no tools/{name}')
    return path


@pytest.fixture(scope='module')
def users_config(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('user')
    config = folder / 'mine.py'
    config.write_text(
        f"""
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['surge_det'])
model = dict(
    backbone=dict(_delete_=True, type='SURGEResNet', depth=18),
    neck=dict(type='SURGEFPN', in_channels=[64, 128, 256, 512],
              out_channels=32),
    rpn_head=dict(type='SURGERPNHead', in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=5)))
data = dict(
    type='VOCFormatDataset', data_root={str(root / 'shapes') + '/'!r},
    metainfo=dict(classes=('circle', 'square', 'triangle', 'star', 'ring')))
train_dataloader = dict(
    num_workers=0, persistent_workers=False, batch_size=4,
    dataset=dict(_delete_=True, ann_file='ImageSets/Main/train.txt',
                 pipeline={{{{_base_.train_pipeline}}}}, **data))
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(_delete_=True, ann_file='ImageSets/Main/test.txt',
                 test_mode=True, pipeline={{{{_base_.test_pipeline}}}},
                 **data))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='VOCMetric', metric='mAP')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
optim_wrapper = dict(
    type='AGSOptimWrapper', ags=dict(eta=0.1),
    constructor='SURGEOptimWrapperConstructor')
custom_hooks = [dict(type='AGSHook')]
model.update(test_cfg=dict(rcnn=dict(score_thr=0.0)))
"""
    )
    return config


def test_stock_tools_on_a_users_config(users_config, root):
    folder = users_config.parent
    small = [
        '--cfg-options',
        'default_hooks.logger.interval=1',
        'train_dataloader.dataset.pipeline.2.scale=(192,128)',
        'val_dataloader.dataset.pipeline.1.scale=(192,128)',
    ]
    out = run(
        sys.executable,
        stock_tool('train.py'),
        users_config,
        *small,
        root=root,
        cwd=folder,
    )
    assert 'AGS lambda of 25 layers' in out
    checkpoint = folder / 'work_dirs' / 'mine' / 'epoch_1.pth'
    tested = run(
        *(sys.executable, '-m', 'surge_det', 'run', stock_tool('test.py')),
        *(users_config, checkpoint),
        '--cfg-options',
        'test_dataloader.dataset.pipeline.1.scale=(192,128)',
        root=root,
        cwd=folder,
    )
    assert final_map(tested) == final_map(out)


def test_inferencer_and_init_detector(trained, root):
    work_dir, _ = trained
    code = """
import sys
import surge_det
from mmdet.apis import DetInferencer, inference_detector, init_detector
config, checkpoint, image = sys.argv[1:]
model = init_detector(config, checkpoint, device='cpu')
result = inference_detector(model, image)
inferencer = DetInferencer(model=config, weights=checkpoint, device='cpu')
(prediction,) = inferencer(image)['predictions']
assert len(prediction['scores']) == len(result.pred_instances), prediction
print('found', len(prediction['scores']))
"""
    image = next((root / 'shapes' / 'JPEGImages').iterdir())
    out = run(
        sys.executable,
        '-c',
        code,
        CONFIG,
        work_dir / 'epoch_1.pth',
        image,
        root=root,
    )
    assert re.search(r'found \d+', out)
