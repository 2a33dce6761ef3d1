import os
import sys
from importlib.util import find_spec

import pytest
import torch
from command_line import ROOT, python

from surge_det import compat
from surge_det.compat import mmcv_ops


def _run(code, *folders):
    path = os.pathsep.join(map(str, (*folders, ROOT)))
    env = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    return python(code, env=env).splitlines()


def _fake_mmcv(folder, ext=None):
    package = folder / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('')
    if ext is not None:
        (package / '_ext.py').write_text(ext)
    return folder


_PROBE = """
import sys, importlib.abc
sys.modules['mmengine'] = None
from surge_det.compat import mmcv_ops
mmcv_ops.install(); mmcv_ops.install()
assert 'mmcv' not in sys.modules
print(mmcv_ops.ops_source())
assert 'mmcv' not in sys.modules
import mmcv._ext
print(mmcv._ext.__spec__.origin, vars(mmcv._ext).get('MARK'))
print(sum(type(f).__name__ == '_ExtFinder' for f in sys.meta_path))
"""


def test_compiled_ops_are_kept(tmp_path):
    folder = _fake_mmcv(tmp_path, "MARK = 'compiled'\n")
    source, loaded, finders = _run(_PROBE, folder)
    assert source == mmcv_ops.COMPILED
    assert loaded.endswith('compiled')
    assert finders == '1'


def test_stand_in_where_nothing_is_compiled(tmp_path):
    pytest.importorskip('torchvision')
    source, loaded, finders = _run(_PROBE, _fake_mmcv(tmp_path))
    assert source == mmcv_ops.STAND_IN
    assert loaded == 'surge_det.compat.mmcv_ops None'
    assert finders == '1'


def test_ops_source_without_mmcv(monkeypatch):
    monkeypatch.setattr(mmcv_ops, 'find_spec', lambda name: None)
    assert compat.ops_source() == mmcv_ops.ABSENT


def test_ops_source_without_torchvision(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(_fake_mmcv(tmp_path))
    monkeypatch.delitem(sys.modules, 'mmcv', raising=False)
    monkeypatch.setattr(
        mmcv_ops,
        'find_spec',
        lambda name: None if name == 'torchvision' else find_spec(name),
    )
    assert compat.ops_source() == mmcv_ops.MISSING


@pytest.fixture
def mmcv_stand_in():
    pytest.importorskip('mmcv')
    pytest.importorskip('torchvision')
    compat.install()
    if compat.ops_source() != mmcv_ops.STAND_IN:
        pytest.skip('this mmcv has compiled ops')
    import mmcv.ops

    return mmcv.ops


def test_mmcv_ops_imports_after_a_failed_try():
    pytest.importorskip('mmcv')
    *_, said = _run(
        """
try:
    import mmcv.ops
except ModuleNotFoundError as error:
    assert error.name == 'mmcv._ext', error
from surge_det import compat
compat.install()
from mmcv.ops import nms
from mmcv.utils.ext_loader import check_ops_exist
print(nms.__module__, check_ops_exist())
"""
    )
    assert said == 'mmcv.ops.nms True'


def test_unsupported_op_raises_at_the_call(mmcv_stand_in):
    boxes = torch.rand(2, 5)
    with pytest.raises(NotImplementedError, match='box_iou_rotated'):
        mmcv_stand_in.box_iou_rotated(boxes, boxes)


def test_environment_report_works(mmcv_stand_in):
    assert mmcv_stand_in.get_compiler_version().startswith('n/a')
    assert mmcv_stand_in.get_compiling_cuda_version().startswith('n/a')


@pytest.mark.parametrize('op', ['roi_align', 'roi_pool'])
def test_roi_ops_pass_gradcheck(mmcv_stand_in, op):
    torch.manual_seed(0)
    x = torch.randperm(2 * 2 * 5 * 6).double().view(2, 2, 5, 6) / 10
    x.requires_grad_()
    rois = torch.tensor([[0, 1.0, 1, 7, 6], [1, 0, 2, 9, 9]]).double()
    function = getattr(mmcv_stand_in, op)
    assert torch.autograd.gradcheck(
        lambda value: function(value, rois, (2, 3), 0.5), (x,)
    )


def test_roi_align_equals_torchvision_with_gradient(mmcv_stand_in):
    from torchvision.ops import roi_align

    torch.manual_seed(0)
    mine = torch.randn(2, 3, 9, 9, requires_grad=True)
    theirs = mine.detach().clone().requires_grad_()
    rois = torch.tensor([[0, 3.0, 1, 30, 22], [1, 0, 12, 9, 35]])
    layer = mmcv_stand_in.RoIAlign(7, 0.25, 0)
    out = layer(mine, rois)
    expected = roi_align(theirs, rois, 7, 0.25, 0, True)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_roi_align_under_autocast(mmcv_stand_in):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    convolution = torch.nn.Conv2d(2, 2, 1)
    rois = torch.tensor([[0, 0.0, 0, 5, 5]])
    with torch.autocast('cpu', torch.bfloat16):
        feature = convolution(x)
        out = mmcv_stand_in.roi_align(feature, rois, 2)
    assert feature.dtype == out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


def test_focal_loss_and_its_gradient(mmcv_stand_in):
    from torchvision.ops import sigmoid_focal_loss

    torch.manual_seed(0)
    mine = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    theirs = mine.detach().clone().requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 3, 1])
    loss = mmcv_stand_in.sigmoid_focal_loss(
        mine, target, 2.0, 0.25, None, 'mean'
    )
    one_hot = torch.nn.functional.one_hot(target, 4)[:, :3].double()
    # mmcv divides by the rows, not by all the elements.
    expected = sigmoid_focal_loss(theirs, one_hot, reduction='sum') / 6
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_batched_and_soft_nms(mmcv_stand_in):
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    labels = torch.tensor([0, 0, 1])
    _, kept = mmcv_stand_in.batched_nms(
        boxes, scores, labels, {'type': 'nms', 'iou_threshold': 0.5}
    )
    assert kept.tolist() == [0, 2]
    dets, inds = mmcv_stand_in.soft_nms(boxes, scores, 0.5, min_score=0.05)
    # IoU 8/9 leaves the second box 0.8 * 1/9.
    assert inds.tolist() == [0, 2, 1]
    assert dets[-1, 4].item() == pytest.approx(0.8 / 9)
