import pytest
from mmengine.config import Config

from surge_det.datasets import check_data, data_root, merge_options
from surge_det.datasets import root as module
from surge_det.datasets.root import use_data_root


def _config(root):
    leaf = dict(type='VOCFormatDataset', data_root=root, ann_file='train.txt')
    return Config(
        dict(
            data_root=root,
            train_dataloader=dict(
                dataset=dict(
                    type='RepeatDataset',
                    times=2,
                    dataset=dict(
                        type='ConcatDataset',
                        datasets=[
                            dict(leaf),
                            dict(leaf, data_prefix=dict(img='images/')),
                        ],
                    ),
                )
            ),
            val_dataloader=None,
            test_dataloader=dict(dataset=dict(leaf, ann_file='test.txt')),
            test_evaluator=[
                dict(type='CocoMetric', ann_file=f'{root}test.json')
            ],
        )
    )


def test_datasets_to_test_on_are_found_in_wrappers():
    cfg = _config('x')
    assert module.test_pipeline(cfg) == module.test_pipeline(Config({})) == []
    cfg.test_dataloader = cfg.train_dataloader
    first, second = module.test_datasets(cfg)
    first.pipeline = ['step']
    assert second.data_prefix
    assert module.test_pipeline(cfg) is first.pipeline


def test_data_root_follows_the_variable(monkeypatch):
    monkeypatch.delenv('SURGE_DATA_ROOT', raising=False)
    assert data_root() == 'data'
    monkeypatch.setenv('SURGE_DATA_ROOT', 'elsewhere/')
    assert data_root() == 'elsewhere/'
    monkeypatch.setenv('SURGE_DATA_ROOT', '')
    with pytest.raises(ValueError, match="SURGE_DATA_ROOT=''"):
        data_root()


def test_check_data_looks_into_every_wrapper(tmp_path):
    root = tmp_path / 'shapes'
    cfg = _config(f'{root}/')
    with pytest.raises(FileNotFoundError, match='train_dataloader'):
        check_data(cfg)
    root.mkdir()
    for name in ('train.txt', 'test.txt', 'test.json'):
        with pytest.raises(FileNotFoundError):
            check_data(cfg)
        (root / name).touch()
    # The second of the concatenated datasets has one path more.
    with pytest.raises(FileNotFoundError, match='images'):
        check_data(cfg)
    check_data(cfg, ['val', 'test'])
    (root / 'images').mkdir()
    check_data(cfg)


def test_check_data_reads_the_evaluator(tmp_path):
    (tmp_path / 'test.txt').touch()
    cfg = _config(f'{tmp_path}/')
    with pytest.raises(FileNotFoundError, match='test_evaluator'):
        check_data(cfg, ['test'])


@pytest.mark.parametrize(
    ('folder', 'source'),
    [
        ('VOCdevkit', 'host.robots.ox.ac.uk'),
        ('coco', 'cocodataset.org'),
        ('bccd', 'BCCD_Dataset'),
        ('shapes', 'surge-det make-demo-data'),
    ],
)
def test_message_tells_path_setting_and_source(monkeypatch, folder, source):
    monkeypatch.setenv('SURGE_DATA_ROOT', 'nowhere')
    with pytest.raises(FileNotFoundError) as error:
        check_data(_config(f'nowhere/{folder}/'))
    message = str(error.value)
    assert f'no data at nowhere/{folder}' in message
    assert "SURGE_DATA_ROOT ('nowhere'" in message
    assert '--cfg-options data_root=' in message
    assert source in message


def test_message_about_a_path_that_the_variable_does_not_hold(monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', 'nowhere')
    with pytest.raises(FileNotFoundError) as error:
        check_data(_config('/mine/coco/'))
    message = str(error.value)
    assert 'That path is not in the data folder' in message
    assert "SURGE_DATA_ROOT ('nowhere'" in message
    assert '--cfg-options data_root=' in message


def test_the_variable_holds_for_configs_that_do_not_read_it(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('SURGE_DATA_ROOT', raising=False)
    cfg = _config('data/coco/')
    use_data_root(cfg)
    assert cfg.data_root == 'data/coco/'
    monkeypatch.setenv('SURGE_DATA_ROOT', '/elsewhere')
    use_data_root(cfg)
    assert cfg.data_root == '/elsewhere/coco/'
    assert cfg.test_dataloader.dataset.data_root == '/elsewhere/coco/'
    assert cfg.test_dataloader.dataset.ann_file == 'test.txt'
    assert cfg.test_evaluator[0].ann_file == '/elsewhere/coco/test.json'
    use_data_root(cfg)
    assert cfg.data_root == '/elsewhere/coco/'
    # A folder that is there is what the config names.
    (tmp_path / 'data' / 'mine').mkdir(parents=True)
    for root in ('data/mine/', 'data', 'data/', 'datasets/coco/', '/x/'):
        cfg = _config(root)
        use_data_root(cfg)
        assert cfg.data_root == root


def test_a_data_root_that_no_dataset_has():
    cfg = _config('data/coco/')
    cfg.data_root = 'mine/'
    with pytest.raises(ValueError, match="is in its data_root='mine/'"):
        merge_options(cfg, {'data_root': 'other/'})


def test_remote_data_is_not_looked_for():
    cfg = _config('s3://bucket/')
    check_data(cfg)
    assert cfg.data_root == 's3://bucket/'


@pytest.mark.parametrize('new', ['b/c', 'b/c/'])
def test_data_root_option_moves_every_path(new):
    cfg = _config('data/a/')
    merge_options(
        cfg,
        {'data_root': new, 'test_dataloader.dataset.ann_file': 'other.txt'},
    )
    datasets = cfg.train_dataloader.dataset.dataset.datasets
    assert [d.data_root for d in datasets] == ['b/c/', 'b/c/']
    assert [d.ann_file for d in datasets] == ['train.txt', 'train.txt']
    assert cfg.test_dataloader.dataset.data_root == 'b/c/'
    assert cfg.test_dataloader.dataset.ann_file == 'other.txt'
    assert cfg.test_evaluator[0].ann_file == 'b/c/test.json'
    assert cfg.data_root == new


def test_other_options_merge_as_always():
    cfg = _config('data/a/')
    merge_options(cfg, None)
    merge_options(cfg, {'test_dataloader.batch_size': 3})
    assert cfg.test_dataloader.batch_size == 3
    assert cfg.test_dataloader.dataset.data_root == 'data/a/'
    with pytest.raises(ValueError, match='data_root=5 must be a path'):
        merge_options(cfg, {'data_root': 5})
    for key in ('train_dataloader.dataset.times.x', 'test_evaluator.3.type'):
        with pytest.raises(ValueError, match=f'--cfg-options {key}: '):
            merge_options(cfg, {key: 'a'})
    with pytest.raises(ValueError, match='has no data_root of its own'):
        merge_options(Config(dict(a=1)), {'data_root': 'x'})


def test_merge_options_moves_whole_folders_only():
    cfg = Config(
        dict(
            data_root='data/coco',
            val_dataloader=dict(
                dataset=dict(
                    type='CocoDataset',
                    data_root='data/coco',
                    ann_file='data/coco/a.json',
                    other='data/coco_extra/a.json',
                )
            ),
        )
    )
    merge_options(cfg, dict(data_root='/x'))
    dataset = cfg.val_dataloader.dataset
    assert dataset.data_root.rstrip('/') == '/x'
    assert dataset.ann_file == '/x/a.json'
    assert dataset.other == 'data/coco_extra/a.json'


def test_merge_options_refuses_to_move_from_nowhere():
    cfg = Config(
        dict(data_root='', val_dataloader=dict(dataset=dict(type='A')))
    )
    with pytest.raises(ValueError, match='data_root'):
        merge_options(cfg, dict(data_root='/x'))
