import os
import shutil

import pytest
import torch
from command_line import ROOT
from compare_runs import arguments, compare, interrupt, rows

pytest.importorskip('mmdet', reason='needs the toolbox')

from surge_det.cli.compare.candidates import make_candidates
from surge_det.cli.compare.runs import Evaluation, EvaluationResult

SURGE = ROOT / 'configs' / 'surge_faster_rcnn_r18_demo.py'
LISTS = 'shapes/ImageSets/Main'
VAL = 'ImageSets/Main/val.txt'

pytestmark = pytest.mark.usefixtures('undrawn')


@pytest.fixture(scope='module')
def with_val(drawn_data, tmp_path_factory):
    """The drawn shapes with some test images made validation images."""
    folder = tmp_path_factory.mktemp('with_val') / 'data'
    shutil.copytree(drawn_data, folder)
    ids = (folder / LISTS / 'test.txt').read_text().split()
    (folder / LISTS / 'val.txt').write_text('\n'.join(ids[:2]))
    (folder / LISTS / 'test.txt').write_text('\n'.join(ids[2:]))
    return folder


@pytest.fixture
def grid(calls, with_val, tmp_path, monkeypatch):
    """Call the tool with a grid; folders are in ``tmp_path / 'out'``."""
    monkeypatch.setenv('SURGE_DATA_ROOT', str(with_val))

    def arguments(methods, rates, *more):
        args = [SURGE, '--methods', *methods.split()]
        args += ['--lr-grid', *rates.split(), *more]
        return [*args, '--out', tmp_path / 'out']

    def call(*args):
        return compare(arguments(*args))

    call.arguments = arguments
    return call


def test_each_method_gets_its_rate(grid, calls, scores, tmp_path, capsys):
    out = tmp_path / 'out'
    # Of the equal ones the smaller.
    scores(
        ste={'0.0005': 0.2, '0.001': 0.7, '0.002': 0.6},
        surge={'0.0005': 0.3, '0.001': 0.8, '0.002': 0.8},
        ede={'0.0005': 0.3, '0.001': 0.4, '0.002': 0.5},
    )
    args = ('ste surge ede reste', '0.002 0.0005 0.001', '--lr', 'reste=0.01')
    assert grid(*args, '--seeds', '4', '1', '--jobs', '2') == 0
    # Nothing is trained twice, and what is fixed is not evaluated.
    expected = [f'{m} 4' for m in ('ste', 'surge', 'ede') for _ in range(3)]
    expected += ['reste 4', 'reste 1', 'ste 1', 'surge 1', 'ede 1']
    expected += [
        f'{m} {lr} val.txt'
        for m in ('ste', 'surge', 'ede')
        for lr in (0.0005, 0.001, 0.002)
    ]
    assert sorted(calls()) == sorted(expected)
    assert (out / 'lr_grid.md').read_text().splitlines()[:5] == [
        '| method | 0.0005 | 0.001 | 0.002 |',
        '|---|---|---|---|',
        '| ste | 0.200 | **0.700** | 0.600 |',
        '| surge | 0.300 | **0.800** | 0.800 |',
        '| ede | 0.300 | 0.400 | **0.500** (edge) |',
    ]
    notes = (out / 'lr_grid.md').read_text().splitlines()[-1]
    assert (
        'mAP on ImageSets/Main/val.txt after the last epoch, seed 4' in notes
    )
    assert notes.endswith('Not chosen but given: reste 0.01.')
    said = capsys.readouterr().out
    assert said.count('warning: ') == 1
    assert 'warning: ede: lr 0.002 is at the edge of the grid' in said

    lines = (out / 'table.md').read_text().splitlines()
    assert lines[0].startswith('| method | lr | seed 1 | seed 4 | mean ± std')
    # What is reported is not what rates were chosen by.
    assert lines[2].startswith('| ste | 0.001 | 0.600 | 0.900 | 0.750 ± ')
    assert [line.split(' | ')[1] for line in lines[3:]] == [
        '0.001',
        '0.002',
        '0.01',
    ]
    table = rows(out)
    assert [
        (r['role'], r['seed'], r['lr'], r['lr_split_mAP'])
        for r in table
        if r['method'] == 'surge'
    ] == [
        ('compared', '1', '0.001', ''),
        ('compared', '4', '0.001', '0.8000'),
        ('lr grid', '4', '0.0005', '0.3000'),
        ('lr grid', '4', '0.002', '0.8000'),
    ]
    assert [
        (r['role'], r['lr_split_mAP']) for r in table if r['method'] == 'reste'
    ] == [('compared', '')] * 2
    assert {(r['status'], r['split']) for r in table} == {('done', 'test')}

    # All is kept, and checkpoints are not needed any more.
    for path in out.glob('*/*/epoch_5.pth'):
        path.unlink()
    assert grid(*args, '--seeds', '4', '1') == 0
    assert calls() == []
    assert rows(out) == table
    assert grid(*args, '--seeds', '4', '1', '7') == 0
    assert sorted(calls()) == ['ede 7', 'reste 7', 'ste 7', 'surge 7']
    # Another split chooses anew.
    args = ('ste', '0.002 0.001', '--split', 'val', '--lr-split', 'test')
    assert grid(*args, '--seeds', '4') == 0
    assert sorted(calls()) == (
        ['ste 0.001 test.txt', 'ste 0.002 test.txt', 'ste 4', 'ste 4']
    )


@pytest.mark.parametrize('left', ['nothing', 'an earlier epoch'])
def test_what_can_no_longer_be_evaluated(grid, calls, tmp_path, capsys, left):
    args = ('ste', '0.001 0.002', '--seeds', '0')
    assert grid(*args) == 0
    calls()
    done, other = (tmp_path / 'out').glob('ste/*/evaluation_val.json')
    done.unlink()
    assert grid(*args) == 0
    assert [call.split()[2] for call in calls()] == ['val.txt']

    done.unlink()
    folder = done.parent
    (folder / 'epoch_5.pth').unlink()
    said = 'delete that folder, so that it is trained again, or fix the rate'
    if left != 'nothing':
        torch.save({}, folder / 'epoch_4.pth')
        said = 'not that of epoch 5'
    capsys.readouterr()
    with pytest.raises(SystemExit, match='2'):
        grid(*args)
    error = capsys.readouterr().err
    assert said in error
    assert str(folder) in error
    assert calls() == []
    assert other.exists()
    # Trained again, even from where it stood, it is evaluated again.
    done.write_text('{"mAP": 0.9, "minutes": 1}')
    (folder / 'result.json').unlink()
    shutil.rmtree(folder / '20260101_000000')
    assert grid(*args, '--resume') == 0
    resumed = ' --resume' * (left != 'nothing')
    assert calls()[0] == f'ste 0{resumed}'
    assert '"mAP": 0.1' in done.read_text()


def test_a_rate_that_fails_is_left_out(grid, calls, scores, tmp_path, capsys):
    out = tmp_path / 'out'
    scores(
        ste={'0.001': 0.5, '0.002': 0.7, '0.01': 0.6},
        ede={'0.001': 'fail', '0.002': 'fail', '0.01': float('nan')},
        surge={'0.001': 0.5, '0.002': 0.7, '0.01': 'fail'},
    )
    args = ('ste ede surge', '0.001 0.002 0.01 0.04', '--seeds', '0', '1')
    assert grid(*args) == 1
    said = capsys.readouterr()
    for line in (
        'ste lr 0.04 seed 0: FAILED, training ended with status 1',
        'warning: ste: lr 0.04 is left out, its training failed',
        'ste: lr 0.002 is chosen, mAP 0.700 on val',
        'surge lr 0.01 seed 0 on val: FAILED, evaluation ended with status 1',
        'nothing is detected',
        'warning: surge: lr 0.01 is left out, its evaluation failed',
        # The largest of those that were evaluated.
        'warning: surge: lr 0.002 is at the edge',
        'ede: FAILED, no learning rate could be evaluated',
    ):
        assert line in said.out
    assert 'warning: ste: lr 0.002 is at the edge' not in said.out
    assert (
        'error: ede: no learning rate could be evaluated\n'
        'ede lr 0.001 seed 0 on val: FAILED, evaluation ended with'
    ) in said.err
    assert 'no mAP was measured on val' in said.err
    assert said.err.count('error: ') == 1
    assert (out / 'lr_grid.md').read_text().splitlines()[2:5] == [
        '| ste | 0.500 | **0.700** | 0.600 | failed |',
        '| ede | failed | failed | failed | failed |',
        '| surge | 0.500 | **0.700** (edge) | failed | failed |',
    ]
    lines = (out / 'table.md').read_text().splitlines()
    assert lines[3].startswith('| ede | — | — | — | — | — |')
    assert '+0.030 | ' not in lines[4]
    assert [
        (r['role'], r['lr'], r['status'], r['lr_split_mAP'])
        for r in rows(out)
        if r['method'] == 'ede'
    ] == [
        ('compared', '', 'failed', ''),
        ('compared', '', 'failed', ''),
        ('lr grid', '0.001', 'done', ''),
        ('lr grid', '0.002', 'done', ''),
        ('lr grid', '0.01', 'done', ''),
        ('lr grid', '0.04', 'failed', ''),
    ]
    assert 'ede 1' not in calls()
    # What failed is tried again. A rate that fails only leaves the grid.
    scores(ste={'0.001': 0.5, '0.002': 0.7})
    assert grid('ste', '0.001 0.002 0.01 0.04', '--seeds', '0', '1') == 0
    assert calls() == ['ste 0']


def test_interrupted_while_evaluating(grid, calls, scores, tmp_path, capsys):
    scores(ste={'0.001': 0.5, '0.002': 'wait'})
    args = ('ste', '0.001 0.002', '--seeds', '0', '1')
    mark = tmp_path / 'out' / 'ste' / 'at_work'
    status, pid = interrupt(grid.arguments(*args), mark)
    assert status == 130
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    # Two trainings, two evaluations, and a training of the other seed.
    assert '3 of 5 runs are finished' in capsys.readouterr().out
    assert [
        (r['role'], r['lr'], r['status'], r['lr_split_mAP'])
        for r in rows(tmp_path / 'out')
    ] == [
        ('compared', '', 'open', ''),
        ('compared', '', 'open', ''),
        ('lr grid', '0.001', 'done', '0.5000'),
        ('lr grid', '0.002', 'done', ''),
    ]
    grid_md = (tmp_path / 'out' / 'lr_grid.md').read_text()
    assert '| ste | 0.500 | open |' in grid_md
    calls()
    scores(ste={'0.002': 0.7})
    assert grid(*args) == 0
    assert calls() == ['ste 0.002 val.txt', 'ste 1']


def test_nobody_waits_for_the_rates_of_others(grid, calls, tmp_path):
    # A rate of ede is at work until ste has all its seeds.
    wait = """
while lr == 0.002 and name == 'ede':
    if 'ste 2' in pathlib.Path(os.environ['CALLS']).read_text():
        break
    time.sleep(0.02)
    if time.monotonic() > start + 20:
        sys.exit('waited in vain')
surge = cfg"""
    stub = tmp_path / 'tools' / 'train.py'
    text = 'import time\nstart = time.monotonic()\n' + stub.read_text()
    stub.write_text(text.replace('\nsurge = cfg', wait))
    args = ('ede ste', '0.001 0.002', '--seeds', '0', '1', '2', '--jobs', '2')
    assert grid(*args) == 0
    done = calls()
    assert done.index('ste 2') < done.index('ede 0.002 val.txt')


def test_nothing_starts_where_rates_can_not_be_chosen(
    grid, calls, capsys, drawn_data, monkeypatch
):
    args = ('ste ede', '0.001 0.002')
    for more, said in (
        (['--lr-split', 'test'], 'test.txt is what the comparison reports on'),
        (['--split', 'val'], 'val.txt is what the comparison reports on'),
        (
            ['--cfg-options', f'train_dataloader.dataset.ann_file={VAL}'],
            '--lr-split val: 2 of 2 images',
        ),
    ):
        with pytest.raises(SystemExit, match='2'):
            grid(*args, *more)
        assert said in capsys.readouterr().err
    # There are only a training and a test split.
    monkeypatch.setenv('SURGE_DATA_ROOT', str(drawn_data))
    with pytest.raises(SystemExit, match='2'):
        grid(*args)
    assert '--lr-split val: there is no ' in capsys.readouterr().err
    assert calls() == []


def test_expected_tasks(grid, calls):
    more = ['--lr', 'ede=1', '--seeds', '0', '1', '2']
    args = grid.arguments('ste ede', '0.001 0.002 0.004', *more)
    tuned, fixed = make_candidates(arguments(args))
    assert fixed.expected_tasks() == fixed.compared
    assert len(fixed.compared) == 3
    # 3 rates, their evaluations, 2 more seeds.
    tasks = tuned.expected_tasks()
    assert len(tasks) == len({*tasks}) == 3 + 3 + 2
    tuned.trials[0].failure = 'diverged'
    assert len(tuned.expected_tasks()) == 3 + 2 + 2
    for evaluation, score in zip(tuned.evaluations[1:], (0.5, 0.25)):
        evaluation.result = EvaluationResult(score, 1)
    tuned.choose()
    tasks = tuned.expected_tasks()
    assert len(tasks) == len({*tasks}) == 3 + 2 + 2
    later = [t for t in tasks if not isinstance(t, Evaluation) and t.seed]
    assert [run.lr for run in later] == [0.002, 0.002]
