"""What README and docs name exists, and the configs in them build."""

import argparse
import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from surge_det.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob('*.md'),
        *ROOT.glob('docs/**/*.md'),
        *ROOT.glob('docs/**/*.ipynb'),
    ]
)
_LINK = re.compile(r'\]\(([^)\s]+)\)')
_FILE = re.compile(
    r'(?<![\w/.…-])((?:configs|docs|examples|requirements|tests|tools)'
    r'/[\w./-]+\.(?:py|sh|md|csv|txt))'
)


def _prose(text):
    return re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)


def _anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    anchors = set()
    for title in re.findall(r'^#+ (.+)$', _prose(page.read_text()), re.M):
        kept = re.sub(r'[^\w\- ]', '', title.strip().lower())
        anchors.add(kept.replace(' ', '-'))
    return anchors


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for link in _LINK.findall(page.read_text()):
        if re.match(r'[a-z]+:', link):
            continue
        name, _, anchor = link.partition('#')
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


@pytest.mark.parametrize(
    'page',
    # The changelog tells of files that were.
    [page for page in PAGES if page.stem != 'CHANGELOG'],
    ids=lambda page: page.stem,
)
def test_files_of_commands_exist(page):
    # `my_…` is the reader's, NAME stands for a name.
    for name in _FILE.findall(page.read_text()):
        if '/my_' not in name and 'NAME' not in name:
            assert (ROOT / name).is_file(), name


def _command_lines(page):
    """The commands in a page's blocks of shell, as lists of words."""
    blocks = re.findall(r'^```shell\n(.*?)^```', page.read_text(), re.M | re.S)
    for block in blocks:
        block = block.replace('\\\n', ' ')
        variable = r'^(\w+)="([^"]*)"\n'
        for name, value in re.findall(variable, block, re.M):
            block = block.replace(f'${name}', value.replace('\n', ' '))
        block = re.sub(variable, '', block, flags=re.M)
        for tool, rest in re.findall(
            r'(?:python tools/(\w+)\.py|surge-det) ([^|>&\n]*)', block
        ):
            words = shlex.split(rest, comments=True)
            if tool:
                script = (ROOT / 'tools' / f'{tool}.py').read_text()
                command = re.search(r'\bscript\((.*)\)', script)[1]
                words = [*re.findall(r"'(\S+)'", command), *words]
            if '...' not in words:
                yield words


def _takes_any_file(parser):
    for action in parser._actions:
        action.type = None
        if isinstance(action, argparse._SubParsersAction):
            for own in action.choices.values():
                _takes_any_file(own)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_commands_have_options_that_there_are(page):
    for words in _command_lines(page):
        parser = build_parser(words[0])
        _takes_any_file(parser)
        args, unknown = parser.parse_known_args(words)
        assert not unknown, words
        if words[0] == 'compare' and args.methods:
            # A rate of a method that is not compared is refused.
            assert {x.partition('=')[0] for x in args.lr} <= {*args.methods}


def _snippet(page, start):
    """The block of Python in a page that starts with `start`."""
    text = (ROOT / page).read_text()
    (block,) = (
        x
        for x in re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)
        if x.startswith(start)
    )
    return block


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_text().split()) < 1200


def _leaves(nav):
    for entry in nav:
        (value,) = entry.values()
        yield from [value] if isinstance(value, str) else _leaves(value)


def test_site_leads_to_every_page():
    site = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())
    outside = site['extra']['outside']
    assert all((ROOT / name).is_file() for name in outside)
    docs = ROOT / 'docs'
    pages = {
        path.relative_to(docs).as_posix()
        for path in [*docs.glob('**/*.md'), *docs.glob('**/*.ipynb')]
    }
    named = list(_leaves(site['nav']))
    assert sorted(named) == sorted({*pages, *outside.values()})


def _public(package):
    """Names in `__all__` of a package, without an import of it."""
    path = ROOT / package.replace('.', '/') / '__init__.py'
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '__all__':
            return ast.literal_eval(node.value)
    raise AssertionError(f'{path} has no __all__')


@pytest.mark.parametrize(
    'package',
    [
        'surge_det.core',
        'surge_det.core.binarizers',
        'surge_det.core.estimators',
        'surge_det.core.fsg',
        'surge_det.datasets',
        'surge_det.deploy',
        'surge_det.engine',
        'surge_det.evaluation',
        'surge_det.models',
        'surge_det.models.distillation',
    ],
)
def test_reference_has_all_that_is_public(package):
    named = {
        name.rpartition('.')[2]
        for page in (ROOT / 'docs' / 'api').glob('*.md')
        for name in re.findall(r'^::: ([\w.]+)$', page.read_text(), re.M)
    }
    assert not set(_public(package)) - named


def test_hook_and_suite_have_one_linter():
    (pinned,) = re.findall(r'ruff==[\d.]+', (ROOT / 'setup.cfg').read_text())
    assert pinned in (ROOT / '.pre-commit-config.yaml').read_text()


def _read(path, text):
    from mmengine.config import Config

    path.write_text(text)
    return Config.fromfile(path)


@pytest.fixture
def registry():
    pytest.importorskip('mmdet', reason='needs the toolbox')
    import surge_det  # noqa: F401

    # isort: split
    from mmdet import registry
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    return registry


def test_custom_config_builds(registry, tmp_path):
    from surge_det.core.layers import named_surge_layers

    cfg = _read(
        tmp_path / 'custom.py', _snippet('README.md', "_base_ = 'mmdet::")
    )
    layers = dict(named_surge_layers(registry.MODELS.build(cfg.model)))
    parts = {name.split('.')[0] for name in layers}
    assert parts == {'backbone', 'neck', 'rpn_head'}


def _own_data(name, folder, tmp_path):
    """A config of the page on one's own data, with its folders replaced."""
    text = _snippet('docs/own_data.md', f"_base_ = 'surge_det::{name}.py'")
    found = re.findall(r"'(/path/to/[\w]+)/'", text)
    assert len(found) == 1
    text = text.replace(found[0], folder.as_posix())
    weights = (tmp_path / 'resnet18.pth').as_posix()
    text = text.replace('/path/to/resnet18.pth', weights)
    path = tmp_path / 'my_detector.py'
    return path, _read(path, text)


def _check_own_data(registry, path, cfg, labels):
    """The config's data, heads and hooks go together; return the model."""
    from surge_det.cli.main import main

    model = registry.MODELS.build(cfg.model)
    assert model.roi_head.bbox_head.num_classes == 2
    datasets = {
        mode: registry.DATASETS.build(cfg[f'{mode}_dataloader'].dataset)
        for mode in ('train', 'val', 'test')
    }
    for dataset in datasets.values():
        image = dataset.get_data_info(0)
        assert [x['bbox_label'] for x in image['instances']] == labels
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        registry.METRICS.build(evaluator).dataset_meta = dataset.metainfo
    hooks = [registry.HOOKS.build(dict(h)) for h in cfg.custom_hooks]
    assert 'SURGECheckHook' in {type(hook).__name__ for hook in hooks}
    # Of classes and heads too.
    assert not main(['check-data', str(path)])
    return model


def test_own_data_in_cocos_format(registry, tmp_path):
    import torch
    import torchvision

    for split in ('train', 'val'):
        box = dict(image_id=1, bbox=[1, 2, 30, 40], area=1200, iscrowd=0)
        content = dict(
            images=[dict(id=1, file_name='1.jpg', width=64, height=48)],
            annotations=[
                dict(box, id=1, category_id=3),
                dict(box, id=2, category_id=7),
            ],
            # Neither in the order of the config nor of the ids.
            categories=[dict(id=3, name='dog'), dict(id=7, name='cat')],
        )
        (tmp_path / f'{split}.json').write_text(json.dumps(content))
        (tmp_path / split).mkdir()
        Image.new('RGB', (64, 48)).save(tmp_path / split / '1.jpg')
    resnet = torchvision.models.resnet18()
    torch.save(resnet.state_dict(), tmp_path / 'resnet18.pth')
    path, cfg = _own_data('surge_faster_rcnn_r18_coco', tmp_path, tmp_path)
    assert cfg.val_evaluator.classwise
    model = _check_own_data(registry, path, cfg, [1, 0])
    assert 'torchvision://' not in cfg.pretty_text
    model.backbone.init_weights()
    assert torch.equal(model.backbone.conv1.weight, resnet.conv1.weight)


def test_own_data_in_vocs_format(registry, tmp_path):
    folder = tmp_path / 'voc'
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (folder / name).mkdir(parents=True)
    box = '<xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>40</ymax>'
    objects = ''.join(
        f'<object><name>{name}</name><bndbox>{box}</bndbox></object>'
        for name in ('dog', 'cat')
    )
    size = '<size><width>64</width><height>48</height><depth>3</depth></size>'
    for name in ('train', 'val'):
        Image.new('RGB', (64, 48)).save(folder / 'JPEGImages' / f'{name}.jpg')
        (folder / 'Annotations' / f'{name}.xml').write_text(
            f'<annotation>{size}{objects}</annotation>'
        )
        (folder / 'ImageSets' / 'Main' / f'{name}.txt').write_text(name)
    path, cfg = _own_data('surge_faster_rcnn_r18_bccd', folder, tmp_path)
    _check_own_data(registry, path, cfg, [1, 0])
    assert cfg.model.backbone.get('init_cfg') is None
    for mode in ('train', 'val', 'test'):
        steps = cfg[f'{mode}_dataloader'].dataset.pipeline
        (resize,) = (step for step in steps if step.type == 'Resize')
        assert resize.scale == (640, 480)
    assert cfg.custom_hooks[-1].type == 'EarlyStoppingHook'
