import copy
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage, MMDistributedDataParallel
from mmengine.registry import init_default_scope
from mmengine.runner import BaseLoop, save_checkpoint, set_random_seed
from processes import needs_gloo, run_processes
from replicas import begin_training
from small_detector import small_config, small_one_stage

from surge_det.core.binarization import BINARIZED, binarization_of
from surge_det.datasets.classes import ClassesError
from surge_det.deploy.config import inference_part
from surge_det.deploy.stored_config import stored_config
from surge_det.engine import AGSAmpOptimWrapper, AGSOptimWrapper
from surge_det.engine.apply_method import apply_method
from surge_det.engine.hooks.check_hook import SURGECheckHook
from surge_det.models.distillation import (
    IDaDistillLoss,
    LogitsDistillLoss,
    PearsonDistillLoss,
    TeacherError,
)
from surge_det.models.distillation.losses import adapted
from surge_det.models.distillation.seen import Seen

LOSSES = ['LogitsDistillLoss', 'PearsonDistillLoss', 'IDaDistillLoss']


def double(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.double)


def seen(**kwargs):
    return Seen(kwargs.pop('head', None), shape=(64, 96), **kwargs)


class Head(torch.nn.Module):
    """What losses ask of a head with two anchors and one level."""

    def __init__(self, sigmoid=True, boxes=()):
        super().__init__()
        self.use_sigmoid_cls = sigmoid
        self.prior_generator = type('', (), {'num_base_priors': [2]})
        self.boxes = boxes


# Formulas


@pytest.mark.parametrize('sigmoid', [True, False])
def test_dense_logits_by_hand(sigmoid):
    classes, head = 3, Head(sigmoid)
    out = classes + (not sigmoid)
    pairs = [
        (double(1, 2 * out, 2, 3, seed=s), double(1, 8, 2, 3, seed=10 + s))
        for s in (0, 1)
    ]
    found = LogitsDistillLoss()(
        *(seen(head=head, dense=([c], [b])) for c, b in pairs)
    )
    (s_cls, s_box), (t_cls, t_box) = (
        [x.numpy()[0] for x in pair] for pair in pairs
    )
    kl, apart, weight = [], [], []
    for a in range(2):
        for y in range(2):
            for x in range(3):
                s = s_cls[a * out : (a + 1) * out, y, x]
                t = t_cls[a * out : (a + 1) * out, y, x]
                if sigmoid:
                    p, q = 1 / (1 + np.exp(-t)), 1 / (1 + np.exp(-s))
                    each = p * np.log(p / q)
                    each += (1 - p) * np.log((1 - p) / (1 - q))
                    weight.append(p.max())
                else:
                    p, q = (np.exp(v) / np.exp(v).sum() for v in (t, s))
                    each = p * np.log(p / q)
                    weight.append(p[:-1].max())
                kl.append(each.sum())
                deltas = (b[4 * a : 4 * a + 4, y, x] for b in (s_box, t_box))
                apart.append(np.abs(np.subtract(*deltas)).mean())
    kl, apart, w = map(np.array, (kl, apart, weight))
    cls = (w * kl).sum() / w.sum() + ((1 - w) * kl).sum() / (1 - w).sum()
    assert found['dense_cls'].item() == pytest.approx(cls, rel=1e-9)
    box = (w * apart).sum() / w.sum()
    assert found['dense_box'].item() == pytest.approx(box, rel=1e-9)
    same = seen(head=head, dense=([pairs[0][0]], [pairs[0][1]]))
    assert max(LogitsDistillLoss()(same, same).values()) < 1e-12


@pytest.mark.parametrize('deltas', [4, 12])
def test_roi_logits_by_hand(deltas):
    rois, classes = 5, 3
    pairs = [
        (
            double(rois, classes + 1, seed=s),
            double(rois, deltas, seed=10 + s),
        )
        for s in (0, 1)
    ]
    found = LogitsDistillLoss()(*(seen(roi=pair) for pair in pairs))
    (s_cls, s_box), (t_cls, t_box) = (
        [x.numpy() for x in pair] for pair in pairs
    )
    kl = box = total = 0.0
    for r in range(rois):
        p, q = (np.exp(v[r]) / np.exp(v[r]).sum() for v in (t_cls, s_cls))
        kl += (p * np.log(p / q)).sum() / rois
        apart = np.abs(s_box[r] - t_box[r]).reshape(-1, 4).mean(1)
        weight = p[:-1] if deltas == 12 else p[:-1].max(keepdims=True)
        box += (weight * apart).sum()
        total += weight.sum()
    assert found['roi_cls'].item() == pytest.approx(kl, rel=1e-9)
    assert found['roi_box'].item() == pytest.approx(box / total, rel=1e-9)


def test_no_roi_at_all():
    none = seen(roi=(double(0, 4), double(0, 12)))
    assert LogitsDistillLoss()(none, none) == {'roi_cls': 0, 'roi_box': 0}


def test_pearson_is_one_minus_correlation():
    maps = [
        [(3 * double(2, 4, h, 3, seed=seed + h) + 5) for h in (2, 4)]
        for seed in (0, 50)
    ]
    found = PearsonDistillLoss()(*(seen(features=m) for m in maps))
    expected = []
    for s, t in zip(*maps):
        r = [
            np.corrcoef(s[:, c].numpy().ravel(), t[:, c].numpy().ravel())[0, 1]
            for c in range(4)
        ]
        expected.append(1 - np.mean(r))
    assert found['features'].item() == pytest.approx(
        np.mean(expected), rel=1e-4
    )
    # Of another scale and mean, but correlated.
    moved = [3 * m - 7 for m in maps[0]]
    loss = PearsonDistillLoss()(seen(features=moved), seen(features=maps[0]))
    assert loss['features'] < 1e-9


def test_regions_are_the_most_different_pairs():
    # Boxes on whole cells of a map of stride 8: a patch of 7×7 cells is cut
    # as it is.
    s, t = double(1, 3, 8, 12), double(1, 3, 8, 12, seed=1)
    t[..., 5:] = 1.5 * s[..., 5:] + 0.5
    boxes = torch.tensor([[0, 0, 56, 56], [40, 0, 96, 56], [40, 8, 96, 64]])
    boxes = boxes.double()
    sides = [seen(head=Head(), features=[x]) for x in (s, t)]
    # One of the teacher's, two of the student's.
    for side, mine in zip(sides, (boxes[:2], boxes[2:])):
        side.proposals = lambda score, iou, mine=mine: [mine]
    cut = [
        [
            m[0, :, y1 : y1 + 7, x1 : x1 + 7].numpy()
            for x1, y1, *_ in (boxes / 8).int().tolist()
        ]
        for m in (s, t)
    ]
    ours, theirs = map(np.array, cut)
    squares = (ours - theirs) ** 2
    both = np.stack([ours, theirs]).var((0, 3, 4))
    apart = (squares.mean((2, 3)) / both).mean(1)
    assert 0 < apart.min() < apart.max() < 4
    for keep, kept in ((1.0, 3), (0.6, 2), (0.0, 1)):
        most = np.argsort(apart)[-kept:]
        spread = theirs[most].var((0, 2, 3))
        found = IDaDistillLoss(keep=keep)(*sides)['regions']
        expected = (squares[most].mean((0, 2, 3)) / spread).mean()
        assert found.item() == pytest.approx(expected, rel=1e-4)
    for side in sides:
        side.proposals = lambda score, iou: [boxes[:0]]
    s.requires_grad_()
    loss = IDaDistillLoss()(*sides)['regions']
    loss.backward()
    assert loss == 0
    assert not s.grad.any()


def test_regions_of_other_widths_are_what_the_best_map_leaves():
    s, t = double(1, 3, 7, 7).requires_grad_(), double(1, 5, 7, 7, seed=1)
    sides = [seen(head=Head(), features=[x]) for x in (s, t)]
    box = torch.tensor([[0.0, 0, 96, 96]]).double()
    for side in sides:
        side.shape = (96, 96)
        side.proposals = lambda score, iou: [box]
    # The same box twice: a patch is the whole map.
    found = IDaDistillLoss()(*sides)['regions']
    ours, theirs = (
        x.detach().numpy()[0].reshape(x.shape[1], -1).T for x in (s, t)
    )
    ours = np.c_[ours, np.ones(49)]
    left = theirs - ours @ np.linalg.lstsq(ours, theirs, rcond=None)[0]
    assert found.item() == pytest.approx(
        ((left**2).mean(0) / theirs.var(0)).mean(), rel=1e-3
    )
    # The map takes the student's scale away: nothing pulls at it.
    found.backward()
    along = (s.grad * s).sum() / (s.grad.norm() * s.norm())
    assert abs(along) < 1e-3


def test_other_widths_are_adapted_by_least_squares():
    s, t = double(2, 3, 4, 5), double(2, 6, 4, 5, seed=1)
    mapped = adapted(s, t)
    ours, theirs = (
        np.moveaxis(x.numpy(), 1, -1).reshape(-1, x.shape[1]) for x in (s, t)
    )
    ours = np.c_[ours, np.ones(len(ours))]
    best = np.linalg.lstsq(ours, theirs, rcond=None)[0]
    expected = (ours @ best).reshape(2, 4, 5, 6)
    np.testing.assert_allclose(
        mapped.movedim(1, -1).numpy(), expected, atol=2e-3
    )
    assert adapted(s, s + 1) is s
    # A channel that says nothing stands in nobody's way.
    s[:, 1] = 0
    assert adapted(s, t).isfinite().all()


# Training


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """Return the float twin's config and weights, as two files."""
    folder = tmp_path_factory.mktemp('teacher')
    cfg = apply_method(small_config(), 'float')
    cfg.dump(folder / 'float.py')
    init_default_scope('mmdet')
    set_random_seed(11)
    model = MODELS.build(cfg.model)
    model.init_weights()
    save(
        model,
        folder / 'float.pth',
        dataset_meta=dict(classes=('RBC', 'WBC', 'Platelets')),
    )
    return folder


def save(model, path, **meta):
    meta = {BINARIZED: binarization_of(model), **meta}
    save_checkpoint(
        {'meta': meta, 'state_dict': model.state_dict()}, str(path)
    )


def settings(folder, *losses, **kwargs):
    return dict(
        teacher_config=str(folder / 'float.py'),
        teacher_ckpt=str(folder / 'float.pth'),
        losses=[
            loss if isinstance(loss, dict) else dict(type=loss)
            for loss in losses or LOSSES
        ],
        **kwargs,
    )


def build(distill_cfg=None, cfg=None, method='surge'):
    cfg = copy.deepcopy(cfg or small_config())
    if distill_cfg:
        cfg.model.distill_cfg = distill_cfg
        method += '+kd'
    set_random_seed(3)
    model = MODELS.build(apply_method(cfg, method).model)
    model.init_weights()
    begin_training(model)
    return model.train()


def steps(model, count=2, wrapper=AGSOptimWrapper, **kwargs):
    optim = wrapper(
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01), **kwargs
    )
    logs = []
    for seed in range(count):
        torch.manual_seed(seed)
        data = demo_mm_inputs(2, [[3, 64, 96]] * 2, num_classes=3)
        logs.append(model.train_step(data, optim))
    return logs


def same(model, other):
    first, second = model.state_dict(), other.state_dict()
    assert [*first] == [*second]
    return all(value.equal(second[key]) for key, value in first.items())


def test_a_student_learns_and_its_teacher_stays(teacher):
    model = build(settings(teacher))
    taught = model.distiller.teacher_of(model)
    before = copy.deepcopy(taught.state_dict())
    (first, _) = steps(model)
    added = {key for key in first if key.startswith('loss_distill')}
    assert added == {
        f'loss_distill_{name}'
        for name in ('dense_cls', 'dense_box', 'roi_cls', 'roi_box')
        + ('features', 'regions')
    }
    assert all(math.isfinite(value) for value in first.values())
    assert all(first[key] > 0 for key in added - {'loss_distill_regions'})
    after = taught.state_dict()
    assert all(value.equal(after[key]) for key, value in before.items())
    assert not any(
        p.requires_grad or p.grad is not None for p in taught.parameters()
    )
    assert not any(module.training for module in taught.modules())
    # It is no part of the student, nor of copies of it.
    plain = build()
    assert [*model.state_dict()] == [*plain.state_dict()]
    assert type(model).__name__ == type(plain).__name__
    average = ExponentialMovingAverage(model)
    assert average.module.distiller is model.distiller
    # And the student is another one than without.
    steps(plain)
    assert not same(model, plain)


def test_weight_0_is_no_teacher_bit_for_bit(teacher):
    off = [dict(type=name, weight=0) for name in LOSSES]
    model, plain = build(settings(teacher, *off)), build()
    logs = steps(model), steps(plain)
    assert [*logs[0][0]] == [*logs[1][0]]
    assert same(model, plain)
    # Loading a teacher draws nothing that the student would draw.
    small = dict(type='PearsonDistillLoss', weight=1e-30)
    model = build(settings(teacher, small))
    state = torch.get_rng_state()
    model.distiller.teacher_of(model)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize('loss', LOSSES)
def test_each_loss_reaches_the_backbone(teacher, loss):
    model = build(settings(teacher, loss), method='ste')
    if loss == 'IDaDistillLoss':
        model.distiller.losses[0].score = 0.0
    torch.manual_seed(0)
    data = model.data_preprocessor(
        demo_mm_inputs(1, [[3, 64, 96]], num_classes=3), True
    )
    losses = model(**data, mode='loss')
    sum(v for k, v in losses.items() if 'distill' in k).backward()
    assert model.backbone.layer1[0].conv1.weight.grad.abs().sum() > 0


def test_mixed_precision(teacher):
    model = build(settings(teacher))
    log = steps(model, 1, AGSAmpOptimWrapper, dtype='bfloat16')[0]
    assert all(math.isfinite(value) for value in log.values())


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_accumulated_gradients(teacher, dtype):
    model = build(settings(teacher))
    kwargs = dict(accumulative_counts=2)
    if dtype != 'float32':
        kwargs.update(wrapper=AGSAmpOptimWrapper, dtype=dtype)
    before = copy.deepcopy(model.state_dict())
    logs = steps(model, 2, **kwargs)
    assert all(math.isfinite(v) for log in logs for v in log.values())
    name = 'backbone.layer1.0.conv1.weight'
    assert not model.state_dict()[name].equal(before[name])


def _learn_in_group(rank, world, folder):
    model = build(settings(Path(folder)))
    parallel = MMDistributedDataParallel(model)
    (log,) = steps(parallel, 1)
    alike = copy.deepcopy(model.state_dict())
    # Batches of their own, but weights in common.
    torch.manual_seed(rank)
    data = demo_mm_inputs(2, [[3, 64, 96]] * 2, num_classes=3)
    optim = AGSOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    parallel.train_step(data, optim)
    weights = [p.detach() for p in model.parameters()]
    torch.save((log, alike, weights), f'{folder}/{rank}.pth')


@needs_gloo
def test_in_a_group_of_processes(teacher):
    run_processes(_learn_in_group, teacher)
    (log, alike, weights), (_, _, others) = (
        torch.load(teacher / f'{rank}.pth') for rank in (0, 1)
    )
    alone = build(settings(teacher))
    (same_log,) = steps(alone, 1)
    # The same batch on both is as good as one process.
    assert log == same_log
    assert log['loss_distill_features'] > 0
    assert all(v.equal(alike[k]) for k, v in alone.state_dict().items())
    assert all(map(torch.equal, weights, others))
    before = list(alone.parameters())
    assert not all(map(torch.equal, weights, before))


def test_a_resumed_training_goes_on(teacher):
    through, first, second = (build(settings(teacher)) for _ in range(3))
    optims = [
        AGSOptimWrapper(torch.optim.SGD(m.parameters(), 0.01, 0.9))
        for m in (through, first, second)
    ]
    batches = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        data = demo_mm_inputs(2, [[3, 64, 96]] * 2, num_classes=3)
        batches.append((seed, data))

    def step(model, optim, seed, data):
        torch.manual_seed(seed)
        model.train_step(copy.deepcopy(data), optim)

    for batch in batches:
        step(through, optims[0], *batch)
    step(first, optims[1], *batches[0])
    second.load_state_dict(first.state_dict())
    optims[2].load_state_dict(optims[1].state_dict())
    step(second, optims[2], *batches[1])
    assert same(through, second)


def test_a_teacher_may_be_1_bit(tmp_path):
    cfg = small_config()
    cfg.dump(tmp_path / 'float.py')
    save(build(method='surge', cfg=cfg), tmp_path / 'float.pth')
    model = build(settings(tmp_path))
    assert binarization_of(model.distiller.teacher_of(model))
    log = steps(model, 1)[0]
    # It is a twin with the same weights, but in eval mode.
    assert 0 < log['loss_distill_features'] < 1


def test_one_stage_detectors_and_other_widths(tmp_path):
    student = small_one_stage()
    cfg = apply_method(student, 'float')
    cfg.model.backbone.base_channels = 8
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=24)
    cfg.model.bbox_head.in_channels = 24
    cfg.dump(tmp_path / 'float.py')
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'float.pth')
    model = build(settings(tmp_path), student)
    model.distiller.losses[2].score = 0.0
    log = steps(model, 1)[0]
    assert all(
        log[f'loss_distill_{name}'] > 0
        for name in ('dense_cls', 'features', 'regions')
    )


def test_inference_needs_nothing_of_the_teacher():
    gone = dict(
        teacher_config='gone.py',
        teacher_ckpt='gone.pth',
        losses=[dict(type='PearsonDistillLoss')],
    )
    model = build(gone).eval()
    with torch.no_grad():
        model.test_step(demo_mm_inputs(1, [[3, 64, 96]], num_classes=3))
    cfg = small_config()
    cfg.model.distill_cfg = gone
    assert 'distill_cfg' not in inference_part(cfg)['model']
    assert 'distill_cfg' in cfg.model
    text = Config(dict(model=cfg.model)).pretty_text
    assert 'distill_cfg' not in stored_config(text, 'a file').model


# What is refused


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (dict(teacher_config='none'), "teacher_config='none'"),
        (dict(teacher_ckpt='none.pth'), "teacher_ckpt='none.pth'"),
        (
            dict(teacher_config='surge_retinanet_r50_coco'),
            'has not the weights of surge_retinanet_r50_coco',
        ),
    ],
)
def test_a_teacher_that_cannot_be_had_is_said(teacher, change, said):
    model = build({**settings(teacher), **change})
    with pytest.raises(TeacherError, match=said):
        steps(model, 1)


@pytest.mark.parametrize('content', [b'', b'\x80\x02}q\x00X', 3, {1: 2}])
def test_a_file_that_holds_no_weights_is_said(teacher, content, tmp_path):
    path = tmp_path / 'odd.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({'state_dict': content}, path)
    model = build({**settings(teacher), 'teacher_ckpt': str(path)})
    with pytest.raises(TeacherError, match='odd.pth.*has not the weights'):
        model.distiller.teacher_of(model)


def test_other_images_and_other_outputs_are_refused(teacher, tmp_path):
    cfg = small_config()
    cfg.model.data_preprocessor.mean = [0, 0, 0]
    with pytest.raises(TeacherError, match=r'mean.*must be the same'):
        steps(build(settings(teacher), cfg), 1)
    cfg = small_config()
    cfg.model.roi_head.bbox_head.num_classes = 5
    model = build(settings(teacher), cfg)
    flags = [module.training for module in model.modules()]
    with pytest.raises(TeacherError, match='second stage.*must be the same'):
        model.distiller.teacher_of(model)
    assert [module.training for module in model.modules()] == flags
    cfg = small_config()
    cfg.model.rpn_head.bbox_coder.target_stds = [0.5] * 4
    with pytest.raises(TeacherError, match='box coder of the student'):
        steps(build(settings(teacher), cfg), 1)
    cfg = small_config()
    cfg.model.data_preprocessor.bgr_to_rgb = False
    with pytest.raises(TeacherError, match='data_preprocessor'):
        steps(build(settings(teacher), cfg), 1)


@pytest.mark.parametrize(
    ('student', 'loss', 'said'),
    [
        ('one', 'LogitsDistillLoss', 'RetinaNet cannot learn from the Faster'),
        ('one', 'PearsonDistillLoss', 'levels and strides.*: none of'),
        (
            'levels',
            'LogitsDistillLoss',
            r'levels of .* are 4, .* 5.*: none of',
        ),
        ('levels', 'PearsonDistillLoss', 'levels and strides'),
        ('anchors', 'LogitsDistillLoss', ': PearsonDistillLoss and IDaDist'),
    ],
)
def test_detectors_of_another_kind_are_refused(teacher, student, loss, said):
    if student == 'one':
        cfg = small_one_stage()
        cfg.model.data_preprocessor = small_config().model.data_preprocessor
    elif student == 'anchors':
        cfg = small_config()
        cfg.model.rpn_head.anchor_generator.scales = [16]
    else:
        cfg = small_config()
        cfg.model.neck.num_outs = 4
        cfg.model.rpn_head.anchor_generator.strides = [4, 8, 16, 32]
    model = build(settings(teacher, loss), cfg)
    with pytest.raises(TeacherError, match=f'distill_cfg: a .*{said}'):
        model.distiller.teacher_of(model)


def test_grey_students_are_tried_too(tmp_path):
    for_teacher, cfg = small_config(), small_config()
    for each in (for_teacher, cfg):
        each.model.backbone.in_channels = 1
        each.model.data_preprocessor.update(
            mean=[120.0], std=[60.0], bgr_to_rgb=False
        )
    for_teacher.model.rpn_head.anchor_generator.scales = [16]
    twin = apply_method(for_teacher, 'float')
    twin.dump(tmp_path / 'float.py')
    save(MODELS.build(twin.model), tmp_path / 'float.pth')
    model = build(settings(tmp_path), cfg)
    with pytest.raises(TeacherError, match='anchors of the student'):
        model.distiller.teacher_of(model)


@pytest.mark.parametrize('channels', [1, 3])
def test_to_be_tried_changes_nothing_in_a_student(tmp_path, channels):
    cfg = small_config()
    cfg.model.backbone.in_channels = channels
    cfg.model.data_preprocessor.update(
        mean=[120.0] * channels, std=[60.0] * channels, bgr_to_rgb=False
    )
    twin = apply_method(copy.deepcopy(cfg), 'float')
    twin.dump(tmp_path / 'float.py')
    save(MODELS.build(twin.model), tmp_path / 'float.pth')
    model = build(settings(tmp_path), cfg)
    before = copy.deepcopy(model.state_dict())
    drawn = torch.get_rng_state()
    model.distiller.teacher_of(model)
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert drawn.equal(torch.get_rng_state())
    assert all(module.training for module in model.modules())
    data = demo_mm_inputs(2, [[channels, 64, 96]] * 2, num_classes=3)
    data = model.data_preprocessor(data, training=True)
    losses = model(**data, mode='loss')
    found = {key.split('_')[2] for key in losses if 'distill' in key}
    assert found == {'dense', 'roi', 'features', 'regions'}


def test_heads_that_want_more_are_said(tmp_path):
    cfg = small_config()
    width = cfg.model.neck.out_channels
    cfg.model.roi_head.update(
        type='DoubleHeadRoIHead', reg_roi_scale_factor=1.3
    )
    cfg.model.roi_head.bbox_head = dict(
        type='DoubleConvFCBBoxHead',
        num_convs=1,
        num_fcs=1,
        in_channels=width,
        conv_out_channels=8,
        fc_out_channels=8,
        num_classes=3,
    )
    twin = apply_method(copy.deepcopy(cfg), 'float')
    twin.dump(tmp_path / 'float.py')
    save(MODELS.build(twin.model), tmp_path / 'float.pth')
    model = build(settings(tmp_path, 'LogitsDistillLoss'), cfg)
    said = 'by LogitsDistillLoss: TypeError.*x_reg.*: PearsonDistillLoss'
    with pytest.raises(TeacherError, match=said):
        model.distiller.teacher_of(model)
    steps(build(settings(tmp_path, 'PearsonDistillLoss'), cfg), 1)


@pytest.mark.parametrize('loss', ['LogitsDistillLoss', 'IDaDistillLoss'])
@pytest.mark.parametrize('by_stride', [False, True])
def test_heads_that_emit_something_else_in_training(tmp_path, loss, by_stride):
    cfg = small_one_stage()
    cfg.model.bbox_head = dict(
        type='FCOSHead',
        num_classes=3,
        in_channels=cfg.model.bbox_head.in_channels,
        feat_channels=8,
        stacked_convs=1,
        norm_cfg=None,
        norm_on_bbox=by_stride,
    )
    cfg.model.pop('train_cfg', None)
    twin = apply_method(copy.deepcopy(cfg), 'float')
    twin.dump(tmp_path / 'float.py')
    save(MODELS.build(twin.model), tmp_path / 'float.pth')
    model = build(settings(tmp_path, loss), cfg)
    if not by_stride:
        assert model.distiller.teacher_of(model)
        return
    said = 'FCOSHead: in training it emits.*would do: PearsonDistillLoss$'
    with pytest.raises(TeacherError, match=said):
        model.distiller.teacher_of(model)
    assert all(module.training for module in model.modules())


def test_a_teacher_without_what_the_student_has_is_said():
    level, head = double(1, 2, 2, 3), Head()
    student = seen(
        head=head, dense=([level], [level]), roi=(level[0], level[0])
    )
    for other, text in (
        (seen(), 'the teacher has no head'),
        (seen(head=head, dense=([level] * 2,) * 2), 'are 1, .* 2:'),
        (seen(head=head, dense=([level],)), 'in one map'),
        (seen(head=Head(False), dense=student.dense), 'sigmoid.*softmax'),
    ):
        with pytest.raises(TeacherError, match=text):
            LogitsDistillLoss().check(student, other)
    with pytest.raises(TeacherError, match='IDaDistillLoss: the teacher has'):
        IDaDistillLoss().check(student, seen())
    with pytest.raises(TeacherError, match='the teacher has none'):
        LogitsDistillLoss().check(seen(roi=student.roi), seen())
    with pytest.raises(TeacherError, match='the student has no head'):
        LogitsDistillLoss().check(seen(), student)


def test_weights_that_were_binarized_otherwise_are_refused(tmp_path):
    cfg = small_config()
    for method, other in (('float', 'ste'), ('ste', 'float')):
        apply_method(cfg, method).dump(tmp_path / 'float.py')
        save(build(method=other), tmp_path / 'float.pth')
        model = build(settings(tmp_path))
        with pytest.raises(TeacherError, match=r'float.pth.*another config'):
            model.distiller.teacher_of(model)
    # What a hook of training did not write down is read from the config.
    model = build(method='ste')
    save(model, tmp_path / 'float.pth', **{BINARIZED: None}, cfg='a = 1')
    apply_method(cfg, 'ste').dump(tmp_path / 'float.py')
    with pytest.raises(TeacherError, match='another config'):
        build(settings(tmp_path)).distiller.teacher_of(model)


def test_a_teacher_fetches_nothing(teacher, tmp_path, monkeypatch):
    cfg = Config.fromfile(teacher / 'float.py')
    gone = str(tmp_path / 'gone.pth')
    cfg.load_from = gone
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=gone)
    cfg.dump(tmp_path / 'float.py')
    given = {**settings(teacher), 'teacher_config': str(tmp_path / 'float.py')}
    steps(build(given), 1)


def before_train(model, classes):
    data = SimpleNamespace(metainfo=dict(classes=classes))
    hook = SURGECheckHook()
    hook.before_train(
        SimpleNamespace(
            model=model,
            param_schedulers=None,
            logger=None,
            _train_loop=FakeLoop(data),
        )
    )


class FakeLoop(BaseLoop):
    """A loop of a dataset that runs nothing."""

    def __init__(self, dataset):
        self.dataloader = SimpleNamespace(dataset=dataset)

    def run(self):
        """Run nothing."""


def test_classes_in_another_order_are_refused_before_training(teacher):
    order = ('RBC', 'WBC', 'Platelets')
    before_train(build(settings(teacher)), order)
    with pytest.raises(ClassesError, match=r'teacher is of other classes'):
        before_train(build(settings(teacher)), order[::-1])
    # Features have no classes.
    before_train(build(settings(teacher, 'PearsonDistillLoss')), order[::-1])


@pytest.mark.parametrize('weight', [0, 1])
def test_a_training_with_weight_0_needs_no_file(weight):
    loss = dict(type='PearsonDistillLoss', weight=weight)
    model = build(
        dict(teacher_config='gone', teacher_ckpt='gone', losses=[loss])
    )
    if not weight:
        before_train(model, None)
        return
    with pytest.raises(TeacherError, match='gone'):
        before_train(model, None)


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ('teacher.py', 'None or a dict'),
        (dict(teacher_config='a'), 'None or a dict'),
        (dict(losses=[]), 'losses'),
        (dict(losses=[dict(type='L1Loss')]), "'L1Loss'"),
        (dict(losses=[dict(type='Nothing')]), "'Nothing'"),
        (dict(losses=['LogitsDistillLoss']), 'dicts with a type'),
        (dict(losses=2 * [dict(type='PearsonDistillLoss')]), 'type once'),
        (dict(losses=[dict(type='IDaDistillLoss', keep=2)]), 'keep=2'),
        (dict(losses=[dict(type='IDaDistillLoss', best=2)]), 'best'),
        (dict(losses=[dict(type='PearsonDistillLoss', weight=-1)]), 'weight'),
        (dict(teacher_ckpt=3), 'teacher_ckpt=3'),
    ],
)
def test_bad_settings(tmp_path, given, said):
    if isinstance(given, dict) and 'teacher_config' not in given:
        given = {**settings(tmp_path), **given}
    with pytest.raises(ValueError, match=said):
        build(given)


def test_only_a_whole_detector_takes_the_key(tmp_path):
    cfg = dict(type='ResNet', depth=18, distill_cfg=settings(tmp_path))
    with pytest.raises(ValueError, match='only a whole detector'):
        MODELS.build(cfg)


def test_methods_with_and_without_the_teacher(tmp_path):
    cfg = small_config()
    with pytest.raises(ValueError, match=r"'ste\+kd'.*no teacher"):
        apply_method(cfg, 'ste+kd')
    cfg.model.distill_cfg = settings(tmp_path)
    assert 'distill_cfg' not in apply_method(cfg, 'surge').model
    taught = apply_method(cfg, 'surge+reste+kd')
    assert taught.model.pop('distill_cfg') == settings(tmp_path)
    assert taught.to_dict() == apply_method(cfg, 'surge+reste').to_dict()
    fsg = apply_method(cfg, 'fsg+kd')
    assert fsg.optim_wrapper.type == 'FSGOptimWrapper'
