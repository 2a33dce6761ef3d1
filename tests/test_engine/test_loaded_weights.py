"""Checkpoints that are of another model than the one in training."""

from pathlib import Path

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

# isort: split
import torch
from torch import nn

from surge_det.core import LearnedShift, RPReLU
from surge_det.engine import WeightsError

HOOK = [{'type': 'SURGECheckHook'}]


def saved(path, model, **meta):
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, path)
    return str(path)


@pytest.fixture
def trained(make_runner, make_model):
    """A checkpoint of one epoch."""
    runner = make_runner(make_model(), custom_hooks=HOOK, work_dir='trained')
    runner.train()
    return f'{runner.work_dir}/epoch_1.pth'


@pytest.fixture
def start(make_runner):
    """Train from a checkpoint; return the lines that tell of it."""

    def start(model, path, resume=False):
        runner = make_runner(
            model,
            custom_hooks=HOOK,
            load_from=path,
            resume=resume,
            work_dir=f'{Path(path).stem}_{resume}',
            max_epochs=2,
        )
        runner.train()
        (log,) = Path(runner.log_dir).glob('*.log')
        lines = log.read_text().splitlines()
        return [x for x in lines if 'tensors are loaded' in x]

    return start


def test_resume_of_the_same_model(make_model, start, trained):
    assert start(make_model(), trained, resume=True) == []


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (
            lambda m: m.body.append(nn.Conv2d(6, 6, 1)),
            ['2 missing in the file (body.2.weight, body.2.bias)'],
        ),
        (
            lambda m: setattr(m, 'stem', nn.Conv2d(3, 4, 5, padding=1)),
            ['1 of other shape (stem.weight (4, 3, 3, 3) not (4, 3, 5, 5))'],
        ),
        (
            lambda m: m.head.strip(),
            ['1 not in the model (head.aux_weight)'],
        ),
        (
            lambda m: setattr(m.head, 'binarize_weight', False),
            ['1 layers compute something else', 'head 1-bit, ScaledSign there']
            + ['activations 1-bit here'],
        ),
    ],
)
def test_resume_of_another_model_is_refused(
    make_model, start, trained, change, said
):
    model = make_model()
    change(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match='cannot be resumed') as error:
        start(model, trained, resume=True)
    for text in (trained, *said):
        assert text in str(error.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_pointer_of_another_model_is_refused(make_runner, make_model):
    runner = make_runner(make_model(), custom_hooks=HOOK)
    runner.train()
    model = make_model()
    model.body.append(nn.Conv2d(6, 6, 1))
    resumed = make_runner(model, custom_hooks=HOOK, resume=True)
    with pytest.raises(WeightsError, match=r'epoch_1\.pth: cannot be'):
        resumed.train()


def test_a_new_head_is_told_and_trained(make_model, start, trained):
    model = make_model()
    model.head = nn.Linear(6, 2)
    nn.init.zeros_(model.head.weight)
    model.extra = nn.ModuleList([RPReLU(3), LearnedShift(3)])
    (line,) = start(model, trained)
    assert 'WARNING' in line
    assert trained in line
    # Two of the stem, four of the norm and of the convolution, the head's.
    assert '10 of 14 tensors are loaded' in line
    assert '4 missing in the file (extra.0.' in line
    assert '1 not in the model (head.aux_weight)' in line
    assert 'head 1-bit, ScaledSign there, real here' in line


def test_a_backbone_alone_is_a_start(make_model, start, tmp_path):
    model = make_model()
    backbone = nn.Module()
    backbone.stem = model.stem
    path = saved(tmp_path / 'stem.pth', backbone)
    (line,) = start(make_model(), path)
    assert '2 of 10 tensors are loaded' in line


def test_a_float_model_is_a_start(make_model, start, tmp_path):
    model = make_model(compensate=False)
    path = saved(tmp_path / 'float.pth', model)
    surge = make_model()
    (line,) = start(surge, path)
    assert '10 of 10 tensors are loaded; 2 layers compute something' in line
    assert 'body.1 real there, 1-bit, ScaledSign here' in line


@pytest.mark.parametrize(
    ('compensate', 'cfg'),
    [(False, "neck = dict(type='SURGEFPN')"), (True, '')],
)
@pytest.mark.parametrize('resume', [False, True])
def test_files_of_earlier_versions_are_taken(
    make_model, make_runner, start, compensate, cfg, resume
):
    runner = make_runner(make_model(compensate=compensate), work_dir='old')
    runner.train()
    path = Path(runner.work_dir) / 'epoch_1.pth'
    old = torch.load(path, weights_only=False)
    assert 'binarized' not in old['meta']
    old['meta']['cfg'] = cfg
    torch.save(old, path)
    assert start(make_model(compensate=compensate), str(path), resume) == []


def test_a_float_training_is_not_resumed_with_1_bit_layers(
    make_model, make_runner, start
):
    model = make_model(compensate=False)
    runner = make_runner(model, work_dir='float')
    runner.train()
    path = f'{runner.work_dir}/epoch_1.pth'
    with pytest.raises(WeightsError, match='body.1 real there, 1-bit'):
        start(make_model(compensate=False), path, resume=True)


def test_nothing_is_said_of_what_fits(make_model, start, trained):
    # The method may be another one, with another estimator.
    model = make_model(activation_estimator={'type': 'ApproxSign'})
    assert start(model, trained) == []
    # Nor of what a file of several processes has before its names.
    state = {f'module.{k}': v for k, v in make_model().state_dict().items()}
    path = Path(trained).with_name('wrapped.pth')
    checkpoint = torch.load(trained, weights_only=False)
    torch.save({**checkpoint, 'state_dict': state}, path)
    assert start(make_model(), str(path)) == []


def test_hardly_anything_that_fits_is_refused(make_model, start, tmp_path):
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(6, 2))
    path = saved(tmp_path / 'other.pth', other)
    with pytest.raises(WeightsError) as error:
        start(make_model(), path)
    for text in (
        *(path, '0 of 10 tensors are loaded', 'at least 50% of 4 must fit'),
        *(
            'missing in the file (stem.weight, stem.bias, body.0.weight',
            '0.we',
        ),
        'model.backbone.init_cfg',
    ):
        assert text in str(error.value)


def test_watching_ends_with_the_load(make_model, start, trained):
    model = make_model()
    start(model, trained)
    assert not model._load_state_dict_post_hooks
