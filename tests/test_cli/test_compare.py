import math
import os
import re
import signal
import threading
import time

import pytest
from command_line import ROOT
from compare_runs import arguments, compare, interrupt, rows

pytest.importorskip('mmdet', reason='needs the toolbox')

from mmengine.config import Config
from rich.progress import Progress

from surge_det.cli.compare import runs, scheduler
from surge_det.cli.compare.candidates import make_candidates
from surge_det.cli.compare.runs import (
    Evaluation,
    EvaluationResult,
    Run,
    TrainingResult,
    make_run,
)
from surge_det.cli.compare.scheduler import environment, show
from surge_det.cli.compare.split import choose_split, lr_split_config

CONFIGS = ROOT / 'configs'
SURGE = CONFIGS / 'surge_faster_rcnn_r18_demo.py'


def test_methods_are_put_side_by_side(calls, tmp_path, capsys):
    out = tmp_path / 'out'
    args = [SURGE, '--methods', 'surge', 'ste', 'surge+reste', '--seeds']
    args += ['0', '1', '--jobs', '2', '--out', out, '--lr', 'ste=0.002']
    assert compare(args) == 0
    assert len(calls()) == 6
    head, _, surge, ste, reste = (out / 'table.md').read_text().splitlines()
    assert head.startswith(
        '| method | lr | seed 0 | seed 1 | mean ± std | minus ste | s/iter |'
    )
    # std of (0.5, 0.6) is 0.1 / sqrt(2); the first time has the start in it.
    assert ste.startswith(
        '| ste | 0.002 | 0.500 | 0.600 | 0.550 ± 0.071 | — | 0.250 |'
    )
    # Differences 0.03 and 0.01: mean 0.02, t(0.975, 1 df) = 12.706 times
    # the standard error 0.01.
    rest = ' | 0.530 | 0.610 | 0.570 ± 0.057 | +0.020 ± 0.127 | 0.250 |'
    assert surge.startswith('| surge | 0.003' + rest)
    assert reste.startswith('| surge+reste | 0.003' + rest)
    table = rows(out)
    assert len(table) == 6
    assert {row['role'] for row in table} == {'compared'}
    row = table[3]
    assert 0 < float(row.pop('memory_mib')) < 8_000
    assert 0 <= float(row.pop('minutes')) < 1
    assert row == dict(
        method='ste',
        role='compared',
        seed='1',
        lr='0.002',
        split='test',
        status='done',
        mAP='0.6000',
        lr_split_mAP='',
        s_per_iter='0.2500',
        cuda_memory_mib='',
        resumed='0',
        mAP_epoch_1='0.3000',
        mAP_epoch_2='0.6000',
    )
    for name in ('map_over_epochs', 'differences'):
        assert (out / f'{name}.png').stat().st_size > 5_000
    assert not (out / 'lr_grid.md').exists()
    said = capsys.readouterr().out
    assert said.count('mAP 0.') == 6
    # Seed by seed, as they are started: they may come up in another order.
    seeds = re.findall(r' seed (\d): started', said)
    assert seeds == ['0'] * 3 + ['1'] * 3

    # Everything is kept; another method and another setting are added.
    assert compare([*args, '--baseline', 'surge']) == 0
    assert calls() == []
    assert 'minus surge |' in (out / 'table.md').read_text()
    more = ['--seeds', '0', '--cfg-options', 'train_cfg.max_epochs=3']
    assert compare([*args, *more, '--methods', 'ste', 'ede']) == 0
    assert len(calls()) == 2


@pytest.mark.usefixtures('undrawn')
def test_several_configs_are_compared_as_they_are(calls, tmp_path):
    configs = [
        CONFIGS / f'{n}_faster_rcnn_r18_demo.py' for n in ('ste', 'surge')
    ]
    work_dir = tmp_path / 'work'
    args = [*configs, '--seeds', '0', '--out', tmp_path / 'out']
    assert compare([*args, '--work-dir', work_dir]) == 0
    ste, surge = (tmp_path / 'out' / 'table.md').read_text().splitlines()[2:]
    assert ste.startswith('| ste_faster_rcnn_r18_demo | 0.003 | 0.500 | 0.500')
    assert '| 0.530 | 0.530 | +0.030 |' in surge
    assert len(list(work_dir.glob('*/seed0-*/result.json'))) == 2
    assert rows(tmp_path / 'out')[1]['config'] == 'surge_faster_rcnn_r18_demo'


@pytest.mark.usefixtures('undrawn')
def test_failed_run_is_named_after_the_others_are_done(
    calls, tmp_path, capsys
):
    out = tmp_path / 'out'
    args = [SURGE, '--methods', 'ste', 'reste', 'ede', '--out', out]
    assert compare([*args, '--seeds', '0', '--lr', 'reste=0.04']) == 1
    said = capsys.readouterr().err
    assert 'reste seed 0: FAILED, training ended with status 1' in said
    assert re.search(r'reste/seed0-\w+/train\.log ends with:', said)
    assert 'loss is upside down' in said
    assert [r['status'] for r in rows(out)] == ['done', 'failed', 'done']
    line = (out / 'table.md').read_text().splitlines()[3]
    assert line.startswith('| reste | 0.04 | — | — | — |')
    # What failed is tried again, what was done is not.
    calls()
    assert compare([*args, '--seeds', '0', '--lr', 'reste=0.04']) == 1
    assert calls() == ['reste 0']


@pytest.mark.usefixtures('undrawn')
def test_interruption_keeps_finished_runs(calls, tmp_path, capsys):
    out = tmp_path / 'out'
    args = [SURGE, '--methods', 'ste', 'ede', 'surge', '--seeds', '0']
    args += ['--out', out, '--lr', 'ede=0.03']
    handlers = [*map(signal.getsignal, (signal.SIGTERM, signal.SIGHUP))]
    status, pid = interrupt(args, out / 'ede' / 'at_work')
    assert status == 130
    assert handlers == [
        *map(signal.getsignal, (signal.SIGTERM, signal.SIGHUP))
    ]
    assert '1 of 3 runs are finished' in capsys.readouterr().out
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert calls() == ['ste 0', 'ede 0']
    assert [r['status'] for r in rows(out)] == ['done', 'open', 'open']
    (half,) = (out / 'ede').glob('seed0-*/epoch_1.pth')
    # A half run goes on only where that is asked for.
    interrupt([*args, '--resume'], out / 'ede' / 'at_work')
    assert calls() == ['ede 0 --resume']
    stub = tmp_path / 'tools' / 'train.py'
    stub.write_text(stub.read_text().replace('0.03:', '0.0:'))
    (half.parent / 'left_over').touch()
    assert compare(args) == 0
    assert not (half.parent / 'left_over').exists()
    assert calls() == ['ede 0', 'surge 0']
    assert [r['resumed'] for r in rows(out)] == ['0', '0', '0']


def only_run(args):
    (candidate,) = make_candidates(arguments(args))
    ((run,),) = candidate.runs
    return run


@pytest.mark.usefixtures('undrawn')
def test_a_run_of_another_process_is_waited_for(calls, tmp_path):
    args = [SURGE, '--methods', 'ste', '--seeds', '0', '--out', tmp_path]
    run = only_run(args)
    with run.lock() as lock:
        assert run.lock() is None
        start = time.monotonic()
        threading.Timer(0.5, lock.close).start()
        assert compare(args) == 0
        assert time.monotonic() - start > 0.5
    assert calls() == ['ste 0']


def test_memory_is_that_of_the_training(calls, tmp_path):
    args = [SURGE, '--methods', 'ste', '--seeds', '0', '--lr', 'ste=0.05']
    run = only_run([*args, '--out', tmp_path])
    run.execute(dict(os.environ), run.lock(), threading.Event())
    # Not of the process that this test runs in, which has the toolbox in it.
    assert 100 < run.result.memory < 150


@pytest.mark.parametrize('peak', [None, 900.0])
def test_a_run_that_ends_when_it_is_stopped(
    calls, tmp_path, monkeypatch, peak
):
    monkeypatch.setattr(runs, '_end', lambda process: process.wait())
    monkeypatch.setattr(runs, '_peak_memory', lambda pid: peak)
    args = [SURGE, '--methods', 'ste', '--seeds', '0', '--lr', 'ste=0.05']
    run = only_run([*args, '--out', tmp_path])
    stop = threading.Event()
    stop.set()
    run.execute(dict(os.environ), run.lock(), stop)
    assert run.failure is None
    # It is kept where its result is whole, and done again otherwise.
    assert run.result_file.exists() is run.load() is (peak is not None)
    assert run.result is None or run.result.memory == peak


@pytest.mark.usefixtures('undrawn', 'calls')
def test_a_file_gets_a_line_now_and_then(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scheduler, 'IN_FILE', 0.1)
    args = [SURGE, '--methods', 'ste', '--seeds', '0', '--lr', 'ste=0.05']
    assert compare([*args, '--out', tmp_path]) == 0
    said = capsys.readouterr().out
    # 10 of 40 iterations of the second of five epochs, for a second.
    line = r'^0 of 1 done, 0 failed.*; running: ste seed 0 25%$'
    assert len(re.findall(line, said, re.MULTILINE)) > 1
    assert len(re.findall('^1 of 1 done, 0 failed$', said, re.M)) == 1


def test_names_and_results_of_finished_runs_are_found_again(tmp_path):
    cfg = Config(
        dict(
            model=dict(type='SSD', depths=(2, 3)),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.001)),
            train_cfg=dict(max_epochs=2),
            randomness=dict(deterministic=True),
        )
    )
    run = make_run('ste', 0.001, 3, cfg, tmp_path)
    # Were they others, all comparisons that were begun would start anew.
    assert run.folder == tmp_path / 'ste' / 'seed3-ba4c587832'
    run.folder.mkdir(parents=True)
    (run.folder / 'result.json').write_text(
        '{"scores": [[2, 0.5], [4, 0.75]], "step_name": "epoch", '
        '"minutes": 8.5, "iteration": 0.25, "memory": 900.0, '
        '"cuda_memory": null, "resumed": false}'
    )
    assert run.load()
    assert run.result == TrainingResult(
        [[2, 0.5], [4, 0.75]], 'epoch', 8.5, 0.25, 900.0, None, False
    )
    assert run.result.mAP == 0.75


@pytest.mark.parametrize(
    ('log', 'share'),
    [
        ('not yet', 0),
        # 30 of 4 x 40 iterations.
        ('x\nEpoch(train) [1][ 30/40]  lr: 1\nEpoch(val) [1][2/2]', 30 / 160),
        ('Epoch(train) [1][40/40]\nEpoch(train)  [3][20/40]', 100 / 160),
        ('Iter(train) [ 75/100]  lr: 1', 0.75),
        ('Epoch(test)  [30/40]    eta: 0:00:10', 0.75),
    ],
)
def test_share_of_a_running_process(tmp_path, log, share):
    run = Run(tmp_path, Config(dict(train_cfg=dict(max_epochs=4))), 'a', 1, 0)
    assert run.share() == 0
    run.log.write_text(log)
    assert run.share() == share


def test_time_left(tmp_path):
    now = [0.0]
    progress = Progress(
        get_time=lambda: now[0], disable=True, speed_estimate_period=math.inf
    )
    progress.add_task('')
    cfg = Config(dict(train_cfg=dict(max_epochs=1)))
    runs = [Run(tmp_path / str(i), cfg, f'm{i}', 1, 0) for i in range(3)]
    tasks = [*runs, Evaluation(runs[0].folder, cfg, runs[0], 'val')]
    done = TrainingResult([(1, 0.5)], 'epoch', 8.0, 1, 1, None, False)
    runs[0].folder.mkdir()
    # What an earlier call has finished says nothing about the time.
    runs[1].result = done
    bars = {runs[0]: progress.add_task('m0', total=1)}
    assert show(progress, tasks, bars) == (
        '1 of 4 done, 0 failed; running: m0 seed 0 0%'
    )
    for now[0], iterations in ((100.0, 10), (200.0, 20)):
        runs[0].log.write_text(f'Epoch(train) [1][ {iterations}/40]')
        text = show(progress, tasks, bars)
    assert progress.tasks[1].completed == 0.5
    # 1.6 trainings of 400 s: an evaluation is a tenth of one.
    assert text == (
        '1 of 4 done, 0 failed, about 0:10:40 left; running: m0 seed 0 50%'
    )
    runs[0].result, now[0] = done, 400.0
    assert show(progress, tasks, {}).endswith(' about 0:07:20 left')
    runs[2].failure = 'diverged'
    tasks[3].result = EvaluationResult(0.5, 1)
    assert show(progress, tasks, {}) == '3 of 4 done, 1 failed'


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ({}, {'OMP_NUM_THREADS': '3'}),
        ({'OMP_NUM_THREADS': '1'}, {'OMP_NUM_THREADS': '1'}),
        (
            {'MKL_NUM_THREADS': '2'},
            {'OMP_NUM_THREADS': '2', 'MKL_NUM_THREADS': '2'},
        ),
    ],
)
def test_threads_are_one_number(monkeypatch, given, expected):
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(scheduler.os, 'cpu_count', lambda: 6)
    env = environment(0, 2)
    assert {k: v for k, v in env.items() if '_NUM_THREADS' in k} == expected


def test_each_slot_has_a_gpu(monkeypatch):
    def visible():
        envs = [environment(slot, 3) for slot in range(3)]
        return [env.get('CUDA_VISIBLE_DEVICES') for env in envs]

    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(scheduler.torch.cuda, 'device_count', lambda: 1)
    assert visible() == [None] * 3
    monkeypatch.setattr(scheduler.torch.cuda, 'device_count', lambda: 2)
    assert visible() == ['0', '1', '0']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    assert visible() == ['5', '7', '5']


def test_split(tmp_path):
    lists = tmp_path / 'lists'
    lists.mkdir()
    for name, ids in (('train', 'ab'), ('val', 'cd'), ('test', 'ef')):
        (lists / f'{name}.txt').write_text('\n'.join(ids))
    (lists / 'trainval.txt').write_text('\n'.join('abcd'))

    def make(train='lists/train.txt', val='lists/test.txt'):
        trained = dict(data_root=str(tmp_path), ann_file=train)
        return Config(
            dict(
                train_dataloader=dict(
                    dataset=dict(
                        type='Repeat', dataset=dict(datasets=[trained])
                    )
                ),
                val_dataloader=dict(
                    dataset=dict(data_root=str(tmp_path), ann_file=val)
                ),
                val_evaluator=dict(type='VOCMetric'),
            )
        )

    for split in ('val', 'test'):
        cfg = make()
        choose_split(cfg, split)
        assert cfg.val_dataloader.dataset.ann_file == f'lists/{split}.txt'
    with pytest.raises(ValueError, match='2 of 2 images .* are trained on'):
        choose_split(make(train='lists/trainval.txt'), 'val')
    with pytest.raises(ValueError, match="ann_file='lists/all.txt' has no"):
        choose_split(make(val='lists/all.txt'), 'val')

    # The other split is for choosing: what is validated on stays.
    cfg = make()
    own = lr_split_config(cfg, 'val')
    assert own.test_dataloader.dataset.ann_file == 'lists/val.txt'
    assert own.test_evaluator == dict(type='VOCMetric')
    assert own.test_cfg == dict(type='TestLoop')
    assert cfg.to_dict() == make().to_dict()
    with pytest.raises(ValueError, match=r'--lr-split test: .*test\.txt is'):
        lr_split_config(make(), 'test')
    choose_split(cfg, 'val')
    assert lr_split_config(cfg, 'test').val_dataloader.dataset.ann_file == (
        'lists/test.txt'
    )
    with pytest.raises(ValueError, match='--lr-split val: 2 of 2 images'):
        lr_split_config(make(train='lists/trainval.txt'), 'val')
    (lists / 'test.txt').write_text('d')
    with pytest.raises(ValueError, match='1 of 2 .* are reported on'):
        lr_split_config(make(), 'val')
    # Whatever the split, nothing is chosen on training images.
    (lists / 'train.txt').write_text('a d')
    with pytest.raises(ValueError, match='1 of 1 images .* are trained on'):
        lr_split_config(make(val='lists/val.txt'), 'test')

    (lists / 'val.txt').unlink()
    with pytest.raises(ValueError, match=r'there is no .*val\.txt'):
        choose_split(make(), 'val')
    with pytest.raises(ValueError, match=r'--lr-split val: there is no .*val'):
        lr_split_config(make(), 'val')

    for name in ('val', 'test'):
        (lists / f'instances_{name}2017.json').touch()
    cfg = make(val='lists/instances_val2017.json')
    cfg.val_evaluator.ann_file = str(lists / 'instances_val2017.json')
    choose_split(cfg, 'test')
    changed = str(lists / 'instances_test2017.json')
    assert cfg.val_evaluator.ann_file == changed
    cfg = make(val='lists/instances_val2017.json')
    cfg.val_evaluator = [dict(ann_file='x'), dict(type='Other')]
    choose_split(cfg, 'test')
    assert cfg.val_evaluator == [dict(ann_file=changed), dict(type='Other')]


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['missing.py'], 'missing.py'),
        ([SURGE, '--jobs', '0'], "--jobs: '0' is not allowed"),
        ([SURGE, SURGE], "CONFIG: one of ['surge_faster_rcnn_r18_demo'"),
        ([SURGE, '--seeds', '1', '1'], '--seeds: one of [1, 1]'),
        (
            [SURGE, CONFIGS / 'ste_faster_rcnn_r18_demo.py']
            + ['--methods', 'ste'],
            '--methods: one config, not 2',
        ),
        (
            [SURGE, '--methods', 'ste', '--baseline', 'ede'],
            "--baseline 'ede': one of",
        ),
        (
            [SURGE, '--methods', 'ste', '--lr', 'ede=0.1'],
            "--lr 'ede': one of ['ste']",
        ),
        (
            [SURGE, '--methods', 'ste', '--lr', 'ste=0'],
            "--lr: '0' is not allowed: a number > 0",
        ),
        (
            [SURGE, '--methods', 'ste', '--lr', '0.1'],
            "--lr: '0.1' is not METHOD=VALUE",
        ),
        ([SURGE, '--lr-grid', '0.1'], '--lr-grid 0.1: two or more'),
        (
            [SURGE, '--lr-grid', '0.1', '0.1'],
            '--lr-grid: one of [0.1, 0.1] is given twice',
        ),
        ([SURGE, '--lr-grid', '0.1', '-1'], "--lr-grid: '-1' is not allowed"),
        ([SURGE, '--lr-split', 'test'], '--lr-split test: only with'),
    ],
)
def test_wrong_arguments_are_refused(capsys, args, said):
    with pytest.raises(SystemExit) as error:
        compare(args)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_nothing_starts_where_a_run_could_not(
    calls, tmp_path, monkeypatch, capsys
):
    args = [SURGE, '--methods', 'ste', '--out', tmp_path]
    for wrong, said in (
        (['--methods', 'ste', 'sge'], "name='sge' is not allowed"),
        (['--split', 'val'], 'there is no '),
    ):
        with pytest.raises(SystemExit, match='2'):
            compare([*args, *wrong])
        assert said in capsys.readouterr().err
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path / 'nowhere'))
    with pytest.raises(SystemExit, match='2'):
        compare(args)
    assert 'nowhere' in capsys.readouterr().err
    assert calls() == []


def test_real_trainings(drawn_data, tmp_path, monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(drawn_data))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    args = [SURGE, '--methods', 'ste', 'surge+reste', '--seeds', 0]
    args += ['--out', tmp_path, '--jobs', 2, '--lr', 'ste=0.0005']
    args += [
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=-1',
        'model.backbone.base_channels=8',
        'model.neck.in_channels=[8,16,32]',
        'model.train_cfg.rpn_proposal.max_per_img=16',
        'model.test_cfg.rpn.max_per_img=16',
    ]
    for loader in ('train_dataloader', 'val_dataloader'):
        args += [f'{loader}.dataset.indices=2', f'{loader}.num_workers=0']
        args.append(f'{loader}.persistent_workers=False')
    assert compare(args) == 0
    ste, reste = rows(tmp_path)
    assert ste['status'] == reste['status'] == 'done'
    assert ste['lr'] == '0.0005'
    for row in (ste, reste):
        assert 0 <= float(row['mAP_epoch_1']) <= 1
        # torch and the toolbox alone take more than 200 MiB.
        assert 200 < float(row['memory_mib']) < 8_000
        assert 0.001 < float(row['s_per_iter']) < 60
    logs = [
        next(tmp_path.glob(f'{n}/seed0-*/train.log'))
        for n in ('ste', 'surge+reste')
    ]
    # What the logs say shows that each was trained by its method.
    assert 'progress/ReSTE.o' not in logs[0].read_text()
    assert 'progress/ReSTE.o' in logs[1].read_text()
    assert 'AGS lambda of 19 layers' in logs[1].read_text()

    # The evaluation that chooses rates is of the last epoch's weights, by
    # the settings of validation: on the same images it gives the same.
    ((run,),) = make_candidates(arguments(args))[1].runs
    assert run.load()
    split = next(drawn_data.glob('shapes/ImageSets/Main')) / 'val.txt'
    split.write_text('none_of_the_others')
    try:
        cfg = lr_split_config(run.cfg, 'val')
    finally:
        split.unlink()
    listed = cfg.test_dataloader.dataset.ann_file
    cfg.test_dataloader.dataset.ann_file = listed.replace('val', 'test')
    evaluation = Evaluation(run.folder, cfg, run, 'val')
    evaluation.execute(environment(0, 1), run.lock(), threading.Event())
    assert evaluation.failure is None
    assert evaluation.result.mAP == pytest.approx(run.result.mAP, abs=1e-4)
    again = Evaluation(run.folder, cfg, run, 'val')
    assert again.load()
    assert again.result == evaluation.result
