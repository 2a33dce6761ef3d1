import hashlib
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from surge_det.datasets import shapes


@pytest.fixture(scope='module')
def scenes():
    return [shapes.draw_scene(0, 'train', index) for index in range(120)]


def _histograms(scenes, bins):
    """Colour histograms (2, bins^3) of background and objects, each sum 1."""
    counts = np.zeros((2, bins**3))
    for scene in scenes:
        b, g, r = np.moveaxis(scene.image.astype(int) * bins // 256, -1, 0)
        code = (b * bins + g) * bins + r
        for side, mask in enumerate((scene.owner < 0, scene.owner >= 0)):
            counts[side] += np.bincount(code[mask], minlength=bins**3)
    return counts / counts.sum(1, keepdims=True)


def test_pixels_are_the_same_on_every_machine(scenes):
    # Drawn with NumPy 2.2 and 2.4, OpenCV 4.12 and 5.0. If a change to the
    # drawing moves this, raise shapes.VERSION.
    digest = hashlib.sha256()
    for scene in scenes[:8]:
        digest.update(scene.image.tobytes())
    assert shapes.VERSION == 1
    assert digest.hexdigest()[:16] == 'fa67b5c3124406de'


def test_scenes_differ_by_index_split_and_seed(scenes):
    others = [
        shapes.draw_scene(0, 'train', 1),
        shapes.draw_scene(0, 'test', 0),
        shapes.draw_scene(1, 'train', 0),
    ]
    for other in others:
        assert (other.image != scenes[0].image).mean() > 0.5


def test_boxes_are_valid_and_tight(scenes):
    for scene in scenes:
        assert scene.image.shape == (shapes.HEIGHT, shapes.WIDTH, 3)
        assert scene.owner.max() == len(scene.instances) - 1
        assert 1 <= len(scene.instances) <= shapes.MAX_OBJECTS
        for index, (_, box, _) in enumerate(scene.instances):
            x1, y1, x2, y2 = box
            assert 0 <= x1 < x2 < shapes.WIDTH
            assert 0 <= y1 < y2 < shapes.HEIGHT
            mine = scene.owner == index
            inside = mine[y1 : y2 + 1, x1 : x2 + 1]
            assert inside.sum() == mine.sum()
            for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert side.any()


def test_scale_varies_and_objects_hide_each_other(scenes):
    instances = [i for scene in scenes for i in scene.instances]
    sizes = [max(x2 - x1, y2 - y1) + 1 for _, (x1, y1, x2, y2), _ in instances]
    low, high = np.percentile(sizes, [2, 98])
    assert high / low > 3
    assert 0.1 < np.mean([i.visible < 1 for i in instances]) < 0.6


def test_objects_stay_mostly_visible(scenes):
    discs = [np.pi * radius**2 for radius in shapes.RADII]
    for scene in scenes:
        for index, instance in enumerate(scene.instances):
            assert 0.6 <= instance.visible <= 1
            if shapes.CLASSES[instance.label] == 'circle':
                # Its whole area is that of a disc of a known radius.
                area = (scene.owner == index).sum() / instance.visible
                assert min(abs(area / disc - 1) for disc in discs) < 0.05


@pytest.mark.parametrize('channel', [0, 1, 2, 'grey'])
def test_no_threshold_finds_the_objects(scenes, channel):
    def values(scene):
        if channel == 'grey':
            return scene.image.mean(-1).astype(int)
        return scene.image[..., channel].astype(int)

    shares = np.zeros((2, 256))
    for scene in scenes:
        for side, mask in enumerate((scene.owner < 0, scene.owner >= 0)):
            shares[side] += np.bincount(values(scene)[mask], minlength=256)
    below = np.cumsum(shares / shares.sum(1, keepdims=True), 1)
    # Share of pixels told right by the best threshold, either way round,
    # with objects and background weighted alike: 0.5 is chance.
    assert 0.5 + abs(below[0] - below[1]).max() / 2 < 0.6


def test_no_colour_rule_finds_the_objects(scenes):
    ground, objects = _histograms(scenes, 8)
    rule = objects > ground
    tests = [shapes.draw_scene(0, 'test', index) for index in range(40)]
    ground, objects = _histograms(tests, 8)
    assert (objects[rule].sum() + ground[~rule].sum()) / 2 < 0.6


def test_dataset_is_byte_equal_and_shows_every_class(tmp_path):
    first, reused = shapes.prepare_shapes(tmp_path / 'a', 12, 6, seed=3)
    second, _ = shapes.prepare_shapes(tmp_path / 'b', 12, 6, seed=3)
    assert not reused
    files = sorted(
        p.relative_to(first) for p in first.rglob('*') if p.is_file()
    )
    assert len(files) == 2 * (12 + 6) + 2 + 1
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    for split, count in (('train', 12), ('test', 6)):
        text = (first / 'ImageSets' / 'Main' / f'{split}.txt').read_text()
        assert len(set(text.split())) == count
        shown = set()
        for name in text.split():
            root = ET.parse(first / 'Annotations' / f'{name}.xml').getroot()
            shown |= {item.text for item in root.iter('name')}
            for box in root.iter('bndbox'):
                x1, y1, x2, y2 = (int(side.text) for side in box)
                assert 1 <= x1 < x2 <= shapes.WIDTH
                assert 1 <= y1 < y2 <= shapes.HEIGHT
        assert shown == set(shapes.CLASSES)


def test_dataset_is_reused_only_when_whole_and_the_same(tmp_path):
    folder, _ = shapes.prepare_shapes(tmp_path, 6, 6)
    image = folder / 'JPEGImages' / 'train_00002.jpg'
    before = image.stat().st_mtime_ns
    assert shapes.prepare_shapes(tmp_path, 6, 6) == (folder, True)
    assert image.stat().st_mtime_ns == before

    image.unlink()
    assert shapes.prepare_shapes(tmp_path, 6, 6) == (folder, False)
    assert image.is_file()

    assert shapes.prepare_shapes(tmp_path, 6, 6, seed=1) == (folder, False)
    assert shapes.prepare_shapes(tmp_path, 7, 6, seed=1) == (folder, False)
    manifest = folder / 'manifest.json'
    old = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(dict(old, version=old['version'] - 1)))
    assert shapes.prepare_shapes(tmp_path, 7, 6, seed=1) == (folder, False)
    assert [p.name for p in tmp_path.iterdir()] == ['shapes']


def test_another_folder_is_never_replaced(tmp_path):
    (tmp_path / 'shapes').mkdir()
    (tmp_path / 'shapes' / 'mine.txt').write_text('precious')
    with pytest.raises(FileExistsError, match='was not made by'):
        shapes.prepare_shapes(tmp_path, 6, 6)
    assert (tmp_path / 'shapes' / 'mine.txt').read_text() == 'precious'


@pytest.mark.parametrize(
    ('counts', 'match'),
    [
        (dict(train=4), 'train=4 must be at least 5'),
        (dict(test=0), 'test=0 must be at least 5'),
        (dict(seed=-1), 'seed=-1 must not be negative'),
    ],
)
def test_bad_parameters_are_refused(tmp_path, counts, match):
    with pytest.raises(ValueError, match=match):
        shapes.prepare_shapes(tmp_path, **counts)
    assert not list(tmp_path.iterdir())


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='val'"):
        shapes.draw_scene(0, 'val', 0)
