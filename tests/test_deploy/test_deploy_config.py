import math

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmengine.config import Config
from small_detector import CONFIGS, META, small_config

from surge_det.core.layers import named_surge_layers
from surge_det.deploy.config import (
    config_text,
    meta_text,
    read_config,
    read_meta,
)
from surge_det.deploy.trained import build_detector


@pytest.mark.parametrize('name', ['faster_rcnn_r18_bccd', 'yolox_tiny_coco'])
def test_text_gives_the_config_back(name):
    cfg = Config.fromfile(CONFIGS / f'surge_{name}.py')
    before = cfg.to_dict()
    found = read_config(config_text(cfg, inference=False), 'it').to_dict()
    assert found == before
    found = read_config(config_text(cfg), 'it').to_dict()
    assert found['model'] == before['model']
    assert found['test_dataloader'] == before['test_dataloader']
    assert 'optim_wrapper' not in found
    assert cfg.to_dict() == before


def test_built_detector_has_no_replica():
    model = build_detector(small_config())
    layers = list(named_surge_layers(model))
    assert len(layers) == 16 + 8 + 1 + 2
    assert all(layer.aux_weight is None for _, layer in layers)
    assert not model.training


def test_what_mmengine_writes_is_read():
    text = "a = dict(b=[1, (2.5, -3)], c={'x-y': None, 1: True})\nd = -inf\n"
    cfg = read_config(text, 'it')
    assert cfg.to_dict()['a'] == {
        'b': [1, (2.5, -3)],
        'c': {'x-y': None, 1: True},
    }
    assert cfg.d == -math.inf


@pytest.mark.parametrize(
    'text',
    [
        "import os\na = os.system('true')",
        "a = __import__('os')",
        'a = dict(b=open("x"))',
        'a = [x for x in ()]',
        'a = dict(**{})',
        'a.b = 1',
        'a = lambda: 1',
        "a = f'{1}'",
        'a = (',
    ],
)
def test_nothing_is_run(text):
    with pytest.raises(ValueError, match=r'detector\.xml: '):
        read_config(text, 'detector.xml')


def test_config_that_could_not_be_read_is_not_written():
    cfg = Config(dict(model=dict(type='SSD', size=range(3))))
    with pytest.raises(ValueError, match=r'this config: its config is not'):
        config_text(cfg)


def test_dataset_meta_comes_back():
    assert read_meta(meta_text(META), 'it') == META
    assert read_meta('{"palette": "random"}', 'it') == {'palette': 'random'}
    names = 'US$ bill', 'a' * 100, '\u0645\u06cc\u200c\u0634\u0648\u062f', ''
    meta = {'classes': names, 'palette': 'red'}
    assert read_meta(meta_text(meta), 'it') == meta
    for text in (
        *('[1]', '{', '', '[' * 100_000, '{"classes": 3}'),
        *('{"classes": [3]}', '{"palette": 3}', '{"palette": [[1, 2]]}'),
        *('{"palette": [[1, 2, "x"]]}', '{"palette": [[1, 2, 256]]}'),
        *(3, {}, ['{}']),
        *('{"classes": ["a\\u001b[2J"]}', '{"classes": ["a\\nb"]}'),
        *('{"classes": ["\\ud800"]}', f'{{"classes": ["{"a" * 101}"]}}'),
        *('{"palette": "nonsense"}', '{"palette": "Red"}'),
    ):
        with pytest.raises(ValueError, match=r'x\.bin: .*dataset_meta') as e:
            read_meta(text, 'x.bin')
        assert str(e.value).isprintable()
        assert len(str(e.value)) < 500
    with pytest.raises(ValueError, match='object'):
        meta_text({'classes': object()})
