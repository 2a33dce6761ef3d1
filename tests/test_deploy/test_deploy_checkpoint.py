import copy
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmdet.apis import init_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from small_detector import META, detections, small_config, train

from surge_det.core.binarization import binarization_of
from surge_det.deploy import FORMATS, load_detector
from surge_det.engine.apply_method import apply_method

PTH = FORMATS['pth']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Config, model and checkpoint, as a runner of mmengine leaves them."""
    init_default_scope('mmdet')
    cfg = small_config()
    model = train(MODELS.build(copy.deepcopy(cfg.model))).eval()
    path = tmp_path_factory.mktemp('trained') / 'epoch_1.pth'
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint = {
        'meta': {
            'dataset_meta': META,
            'epoch': 1,
            'cfg': cfg.pretty_text,
            'binarized': binarization_of(model),
        },
        'state_dict': model.state_dict(),
        'ema_state_dict': {
            key: value.clone() for key, value in model.state_dict().items()
        },
        'optimizer': optimizer.state_dict(),
        'message_hub': {},
    }
    torch.save(checkpoint, path)
    return cfg, model, path


@pytest.fixture(scope='module')
def exported(trained):
    cfg, _, path = trained
    out = path.with_name('detector.pth')
    PTH.save(PTH.load(path, cfg), out)
    return out


def same(model, other):
    first, second = detections(model), detections(other)
    return len(first.bboxes) > 0 and all(
        torch.equal(first[key], second[key])
        for key in ('bboxes', 'scores', 'labels')
    )


def test_trained_detector_without_replicas(trained):
    cfg, model, path = trained
    before = cfg.pretty_text
    loaded = PTH.load(path, cfg)
    assert same(model, loaded)
    assert loaded.dataset_meta == META
    assert loaded.cfg is cfg
    assert not any('aux_weight' in key for key in loaded.state_dict())
    assert not loaded.training
    assert cfg.pretty_text == before


def test_only_what_inference_needs_is_kept(trained, exported):
    checkpoint = torch.load(exported, weights_only=True)
    assert set(checkpoint) == {'meta', 'state_dict'}
    state = checkpoint['state_dict']
    assert not any('aux_weight' in key for key in state)
    values = sum(v.numel() * v.element_size() for v in state.values())
    assert exported.stat().st_size < values + 200_000
    assert exported.stat().st_size < trained[2].stat().st_size / 2


def test_strict_into_the_config(trained, exported):
    cfg, model, _ = trained
    other = MODELS.build(copy.deepcopy(cfg.model)).eval()
    state = torch.load(exported, weights_only=True)['state_dict']
    other.load_state_dict(state, strict=True)
    assert same(model, other)


def test_mmdets_own_call_reads_it(trained, exported):
    cfg, model, _ = trained
    text = torch.load(exported, weights_only=True)['meta']['cfg']
    stored = Config.fromstring(text, '.py')
    assert stored.to_dict() == cfg.to_dict()
    detector = init_detector(stored, str(exported), device='cpu')
    assert same(model, detector)
    assert detector.dataset_meta['classes'] == META['classes']


def test_what_stands_in_place_of_metadata(trained, tmp_path):
    cfg, model, _ = trained
    path = tmp_path / 'x.pth'
    nested = ['x']
    for _ in range(60):
        # 2**60 of the last one, if they were written down.
        nested = [nested, nested]

    def load(meta, config=cfg):
        state = model.state_dict()
        torch.save({'meta': meta, 'state_dict': state}, path)
        return PTH.load(path, config)

    for meta, config, said in (
        (torch.zeros(2), cfg, 'no checkpoint: its meta is no dict'),
        ([nested], cfg, 'its meta is a list, a dict is allowed'),
        ({'cfg': nested}, None, 'holds no config'),
        ({'dataset_meta': {'classes': nested}}, cfg, 'its dataset_meta has'),
    ):
        with pytest.raises(ValueError, match=rf'x\.pth: {said}'):
            load(meta, config)
    # It tells nothing then, as a file without.
    for meta in (
        {'dataset_meta': torch.zeros(2)},
        {'binarized': {'neck': nested}},
        {'binarized': {('neck', 1): 'real'}},
    ):
        assert same(load(meta), model)


@pytest.mark.parametrize('which', ['checkpoint', 'exported'])
@pytest.mark.parametrize('given', [True, False])
def test_load_detector(which, given, trained, exported, monkeypatch):
    cfg, model, path = trained
    path = path if which == 'checkpoint' else exported
    built = []
    build = MODELS.build

    def counted(config, *args, **kwargs):
        built.append(config.get('type'))
        return build(config, *args, **kwargs)

    monkeypatch.setattr(MODELS, 'build', counted)
    detector = load_detector(path, cfg if given else None)
    assert built.count(cfg.model.type) == 1
    assert same(model, detector)
    assert detector.dataset_meta == META


def test_classes_come_from_the_config_where_the_checkpoint_has_none(
    trained, tmp_path
):
    cfg, model, _ = trained
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    meta = PTH.load(path, cfg).dataset_meta
    assert meta['classes'] == META['classes']
    assert meta['palette'] == META['palette']
    with pytest.raises(ValueError, match=r'x\.pth: holds no config'):
        load_detector(path)


def test_checkpoints_that_are_wrong(trained, tmp_path):
    cfg, model, path = trained
    other = Config(cfg.to_dict())
    other.model.roi_head.bbox_head.num_classes = 7
    with pytest.raises(ValueError, match=r'epoch_1\.pth: (?s:.*)fc_cls'):
        PTH.load(path, other)
    state = {k: v for k, v in model.state_dict().items() if 'fpn' not in k}
    part = tmp_path / 'part.pth'
    torch.save({'state_dict': state}, part)
    with pytest.raises(ValueError, match=r'part\.pth: (?s:.*)fpn_convs'):
        PTH.load(part, cfg)
    odd = tmp_path / 'odd.pth'
    torch.save({'state_dict': None}, odd)
    with pytest.raises(ValueError, match=r'odd\.pth: no checkpoint'):
        PTH.load(odd, cfg)
    torch.save({'state_dict': model.state_dict(), 'meta': None}, odd)
    PTH.load(odd, cfg)
    for content in (b'edited', b'GIF89a', b'\x80', b''):
        odd.write_bytes(content)
        with pytest.raises(ValueError, match=r'odd\.pth: no checkpoint'):
            PTH.load(odd, cfg)
    half = tmp_path / 'half.pth'
    half.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r'half\.pth'):
        PTH.load(half, cfg)
    with pytest.raises(OSError, match='nowhere'):
        PTH.load(tmp_path / 'nowhere.pth', cfg)
    with pytest.raises(ValueError, match=r'model\.type'):
        PTH.load(path, Config())


def test_another_binarization_is_told(trained, tmp_path):
    cfg, model, path = trained
    # The same parameters, so that only the checkpoint's config tells.
    for name in ('float', 'irnet'):
        other = apply_method(cfg, name)
        with pytest.raises(ValueError, match='trained with another') as error:
            PTH.load(path, other)
        assert 'layer1.0.conv1 1-bit, ScaledSign,' in str(error.value)
    with pytest.raises(ValueError, match='trained with another config'):
        PTH.load(path, apply_method(cfg, 'float'))
    # Gradients are of no account here.
    PTH.load(path, apply_method(cfg, 'reste'))
    PTH.load(path, apply_method(cfg, 'ste'))
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint['meta']['binarized']
    # Nothing to compare with.
    torch.save(checkpoint, tmp_path / 'x.pth')
    PTH.load(tmp_path / 'x.pth', apply_method(cfg, 'float'))
    # Trained by a config without 1-bit layers, which is not built.
    checkpoint['meta']['cfg'] = "model = dict(type='of_another_package')"
    torch.save(checkpoint, tmp_path / 'x.pth')
    PTH.load(tmp_path / 'x.pth', apply_method(cfg, 'float'))
    with pytest.raises(ValueError, match='real there, 1-bit, Scaled.* here'):
        PTH.load(tmp_path / 'x.pth', cfg)


def test_what_changes_no_output_is_no_other_arithmetic(trained):
    cfg, _, path = trained
    other = Config(cfg.to_dict())
    other.model.backbone.conv_cfg.normalize_input = True
    PTH.load(path, other)
    other.model.backbone.conv_cfg.pad_value = -1
    with pytest.raises(ValueError, match='pad_value=0 there, .*pad_value=-1'):
        PTH.load(path, other)


def test_any_change_of_an_export_is_refused(trained, exported, tmp_path):
    cfg, model, _ = trained
    path = tmp_path / 'x.pth'

    def refused(said, change):
        checkpoint = torch.load(exported, weights_only=True)
        change(checkpoint['meta'], checkpoint['state_dict'])
        torch.save(checkpoint, path)
        for config in (None, cfg):
            with pytest.raises(ValueError, match=rf'x\.pth: {said}') as error:
                PTH.load(path, config)
            assert '\n' not in str(error.value)

    def rename(meta, state):
        meta['dataset_meta'] = {**META, 'classes': ('RBC', 'WBC', 'Plates')}

    def threshold(meta, state):
        changed = meta['cfg'].replace('iou_threshold=0.7', 'iou_threshold=0.6')
        assert changed != meta['cfg']
        meta['cfg'] = changed

    for change in (
        rename,
        threshold,
        lambda meta, state: state['backbone.bn1.bias'][:1].add_(1e-6),
        lambda meta, state: state.update(more=torch.zeros(1)),
        lambda meta, state: state.update(more='x'),
        lambda meta, state: meta.update(epoch=3),
        lambda meta, state: meta.update(more=torch.zeros(1)),
        lambda meta, state: meta.update(digest=None),
    ):
        refused('damaged or changed', change)
    refused('.*export the checkpoint again', lambda m, s: m.pop('digest'))
    PTH.load(exported, cfg)


@pytest.mark.parametrize('which', ['checkpoint', 'exported'])
def test_a_changed_byte_is_refused(which, trained, exported, tmp_path):
    whole = (exported if which == 'exported' else trained[2]).read_bytes()
    path = tmp_path / 'x.pth'
    places = range(len(whole) // 30, len(whole), len(whole) // 5)
    # The last one says that there are more disks.
    for place in (*places, -23):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r'x\.pth: (damaged in|half)'):
            PTH.load(path, trained[0])


def test_an_interruption_leaves_nothing(trained, tmp_path, monkeypatch):
    model = PTH.load(trained[2], trained[0])

    def interrupted(path, value):
        with open(path, 'wb') as file:
            file.write(bytes(value)[:99])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, 'write_bytes', interrupted)
    with pytest.raises(KeyboardInterrupt):
        PTH.save(model, tmp_path / 'x.pth')
    assert not list(tmp_path.iterdir())
