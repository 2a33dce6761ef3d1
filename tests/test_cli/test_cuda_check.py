"""The check of a GPU, on a CPU; on a GPU, see tests/cuda."""

from functools import partial

import pytest
import torch
from small_detector import small_config

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('rich', reason='the benchmark shows its progress')

# isort: split
from mmengine.device import get_device
from mmengine.logging import MMLogger

from surge_det.cli.benchmark import cuda_check
from surge_det.cli.main import main
from surge_det.core import AGS

CPU = torch.device('cpu')
pytestmark = pytest.mark.skipif(
    get_device() != 'cpu', reason='mmengine trains on the accelerator here'
)


@pytest.fixture
def small(monkeypatch):
    MMLogger.get_current_instance().setLevel('ERROR')
    cfg = small_config()
    cfg.model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=50)
    monkeypatch.setattr(cuda_check, '_config', lambda: cfg)
    # All modules of a test session are looked through each time.
    monkeypatch.setattr('gc.collect', lambda: 0)


def test_without_a_gpu_one_line_says_so(capsys):
    with pytest.raises(SystemExit) as end:
        main(['benchmark', '--cuda-check'])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    (line,) = printed.err.splitlines()
    assert '--cuda-check: needs a CUDA GPU' in line


@pytest.mark.parametrize('argv', [[], ['--cuda-check', 'layers']])
def test_it_is_one_or_the_other(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(['benchmark', *argv])
    assert end.value.code == 2
    assert 'or --cuda-check' in capsys.readouterr().err


@pytest.mark.parametrize(
    'check', cuda_check.CHECKS, ids=lambda check: check.__name__
)
def test_all_checks_pass_on_a_cpu(check, small):
    if check is cuda_check.fsg:
        pytest.importorskip('mambapy')
    rows = list(check(CPU))
    assert rows
    assert [row for row in rows if not row.passed] == []


def test_a_wrong_gradient_is_found(monkeypatch):
    scale = AGS.scale

    def wrong(self, *args):
        factor = scale(self, *args)
        return factor * (1.001 if factor.dtype == torch.float32 else 1)

    monkeypatch.setattr(AGS, 'scale', wrong)
    rows = cuda_check.run_checks(CPU, [cuda_check.gradients])
    # The one without a replica stays.
    assert [row.passed for row in rows].count(True) == 1


def test_an_error_is_a_row(capsys):
    def broken(device):
        yield cuda_check.Row('first', '1', '1', True)
        raise RuntimeError('no kernel | for it\nmore')

    rows = cuda_check.run_checks(CPU, [broken])
    assert rows[-1] == cuda_check.Row(
        'broken', 'RuntimeError: no kernel / for it', 'no error', False
    )
    assert 'more' in capsys.readouterr().err


def test_the_report_has_costs_of_layers_and_steps(small):
    costs = {
        'of layers': partial(cuda_check.layer_costs, shrink=30, rounds=1),
        'of steps': partial(cuda_check.step_costs, size=(64, 64), rounds=1),
    }
    good = cuda_check.Row('one', '2', '2', True)
    text, all_good = cuda_check.report(CPU, [good], costs)
    assert all_good
    assert '### Checks: 1 of 1 passed' in text
    assert text.count('| SURGEConv2d / reference SURGE | time') == 2
    for dtype in ('float32', 'autocast'):
        for method in cuda_check.METHODS:
            assert f'| {dtype} | {method} |' in text


def test_a_report_with_a_fault_says_so(capsys):
    bad = cuda_check.Row('one', '2', '1', False)
    text, good = cuda_check.report(CPU, [bad], {})
    assert not good
    assert '### Checks: 0 of 1 passed' in text
    assert '| one | 2 | 1 | **no** |' in text

    def too_large(device):
        raise torch.OutOfMemoryError('out of memory')
        yield ''

    text, good = cuda_check.report(CPU, [], {'of steps': too_large})
    assert not good
    assert text.endswith('**Not measured**: OutOfMemoryError: out of memory')
    assert capsys.readouterr().err
