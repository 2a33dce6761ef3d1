"""What README and docs name exists, and the configs in them build."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for folder in (ROOT, ROOT / 'docs', ROOT / 'docs' / 'results')
    for path in folder.glob('*.md')
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


def test_config_for_data_of_ones_own(registry, tmp_path):
    for split in ('train', 'val'):
        box = dict(image_id=1, bbox=[1, 2, 30, 40], area=1200, iscrowd=0)
        content = dict(
            images=[dict(id=1, file_name='1.jpg', width=64, height=48)],
            annotations=[
                dict(box, id=1, category_id=7),
                dict(box, id=2, category_id=3),
            ],
            categories=[dict(id=3, name='cat'), dict(id=7, name='dog')],
        )
        (tmp_path / f'{split}.json').write_text(json.dumps(content))
        (tmp_path / split).mkdir()
        Image.new('RGB', (64, 48)).save(tmp_path / split / '1.jpg')
    text = _snippet(
        'docs/training.md', "_base_ = './surge_faster_rcnn_r18_coco.py'"
    )
    text = text.replace("'./", f"'{ROOT.as_posix()}/configs/")
    text = text.replace('/path/to/my_data/', f'{tmp_path.as_posix()}/')
    cfg = _read(tmp_path / 'my_detector.py', text)
    model = registry.MODELS.build(cfg.model)
    assert model.roi_head.bbox_head.num_classes == 2
    for loader, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        dataset = registry.DATASETS.build(cfg[f'{loader}_dataloader'].dataset)
        image = dataset.get_data_info(0)
        assert image['img_path'] == str(tmp_path / split / '1.jpg')
        assert [x['bbox_label'] for x in image['instances']] == [1, 0]
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        metric = registry.METRICS.build(evaluator)
        assert metric._coco_api.imgs.keys() == {1}
