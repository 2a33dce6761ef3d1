import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [
    ROOT / 'configs' / f'{name}_faster_rcnn_r18_demo.py'
    for name in ('ste', 'surge')
]


@pytest.fixture(scope='module')
def compare():
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        spec = importlib.util.spec_from_file_location(
            'compare', ROOT / 'tools' / 'compare.py'
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules['compare'] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / 'tools'))
        sys.modules.pop('compare', None)


def finish(out, config, seed, scores, minutes):
    log = out / config.stem / f'seed{seed}' / '20260101_000000' / 'vis_data'
    log.mkdir(parents=True)
    records = [{'loss': 1.0, 'epoch': 1, 'iter': 1, 'step': 1}]
    records += [
        {'pascal_voc/mAP': score, 'step': epoch}
        for epoch, score in enumerate(scores, 1)
    ]
    text = '\n'.join(json.dumps(record) for record in records)
    (log / 'scalars.json').write_text(text)
    (log.parents[1] / 'minutes.txt').write_text(f'{minutes}\n')
    settings = Config.fromfile(config).pretty_text
    (log.parents[1] / 'settings.txt').write_text(settings)


def test_finished_runs_are_kept_and_put_side_by_side(
    compare, tmp_path, capsys
):
    figures = {0: ([0.1, 0.50], [0.2, 0.53]), 1: ([0.3, 0.60], [0.4, 0.61])}
    for seed, pair in figures.items():
        for config, scores in zip(CONFIGS, pair):
            finish(tmp_path, config, seed, scores, 2.0)
    compare.main(
        [str(c) for c in CONFIGS]
        + ['--seeds', '0', '1', '--out', str(tmp_path), '--jobs', '2']
    )
    out = capsys.readouterr().out
    assert out.count('mAP 0.') == 4
    rows = (tmp_path / 'table.md').read_text().splitlines()
    # std of (0.50, 0.60) is 0.1 / sqrt(2).
    assert '| 0.500 | 0.600 | 0.550 ± 0.071 | 2.0 | — |' in rows[2]
    # Differences 0.03 and 0.01: mean 0.02, t(0.975, 1 df) = 12.706 times
    # the standard error 0.01.
    assert (
        '| 0.530 | 0.610 | 0.570 ± 0.057 | 2.0 | +0.020 ± 0.127 |' in rows[3]
    )
    with open(tmp_path / 'runs.csv', newline='') as file:
        table = list(csv.DictReader(file))
    assert len(table) == 8
    assert table[1] == dict(
        config='ste_faster_rcnn_r18_demo',
        seed='0',
        epoch='2',
        mAP='0.5000',
        minutes='2.0',
    )
    assert (tmp_path / 'map_over_epochs.png').stat().st_size > 5_000


def test_run_with_other_settings_is_not_taken(compare, tmp_path):
    finish(tmp_path, CONFIGS[0], 0, [0.5], 2.0)
    with pytest.raises(SystemExit, match='other settings'):
        compare.main(
            [str(CONFIGS[0]), '--seeds', '0', '--out', str(tmp_path)]
            + ['--cfg-options', 'train_cfg.max_epochs=1']
        )


def test_failed_training_names_its_log(compare, tmp_path, monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path / 'nowhere'))
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    with pytest.raises(SystemExit, match='train.log') as error:
        compare.main([str(CONFIGS[0]), '--seeds', '0', '--out', str(tmp_path)])
    assert 'nowhere' in str(error.value)


def test_wrong_arguments_are_refused(compare, capsys):
    for args, said in (
        (['missing.py'], 'missing.py'),
        ([str(CONFIGS[0]), '--jobs', '0'], '--jobs 0'),
    ):
        with pytest.raises(SystemExit):
            compare.main(args)
        assert said in capsys.readouterr().err


def test_twins_start_from_the_same_weights():
    import surge_det  # noqa: F401

    # isort: split
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope
    from mmengine.runner import set_random_seed

    init_default_scope('mmdet')
    states = []
    for config in CONFIGS:
        set_random_seed(3)
        model = MODELS.build(Config.fromfile(config).model)
        model.init_weights()
        states.append(model.state_dict())
    ste, surge = states
    assert set(surge) - set(ste) == {k for k in surge if 'aux_weight' in k}
    for key, value in ste.items():
        assert value.equal(surge[key]), key
