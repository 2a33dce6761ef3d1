"""Published key layouts: every key accounted for, outputs unchanged.

The networks below have the names, shapes and forward passes of the public
code of BiDet, ReActNet (ResNet variant) and Bi-Real Net.
"""

import os
import re
import warnings

import pytest
import torch
from command_line import ROOT, tool
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmdet', reason='needs the toolbox')

from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from surge_det.cli import convert
from surge_det.cli.main import main
from surge_det.core.layers import named_surge_layers
from surge_det.models.backbones.published import (
    LAYOUTS,
    convert_published,
    detect_layout,
    unwrap,
)

WIDTHS = (64, 128, 256, 512)
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


pytestmark = pytest.mark.usefixtures('mmdet_scope')


class Bias(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        return x + self.bias


class FlatBinaryConv(nn.Module):
    """Weights as Bi-Real Net stores them: (n, 1), named ``weights``."""

    def __init__(self, c_in, c_out, stride, flat):
        super().__init__()
        self.stride, self.flat = stride, flat
        self.shape = (c_out, c_in, 3, 3)
        weight = torch.randn(self.shape) * 0.1
        if flat:
            self.weights = nn.Parameter(weight.reshape(-1, 1))
        else:
            self.weight = nn.Parameter(weight)

    def forward(self, x):
        weight = self.weights if self.flat else self.weight
        weight = weight.reshape(self.shape)
        scale = weight.abs().mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, scale * weight.sign(), None, self.stride, 1)


def pooled(c_in, c_out, stride):
    return nn.Sequential(
        nn.AvgPool2d(2, stride),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        nn.BatchNorm2d(c_out),
    )


class OneConvBlock(nn.Module):
    """ReActNet's block with ``react``, else Bi-Real Net's."""

    def __init__(self, c_in, c_out, stride, react, flat):
        super().__init__()
        self.react = react
        if react:
            self.move0 = Bias(c_in)
            self.move1 = Bias(c_out)
            self.prelu = nn.PReLU(c_out)
            self.move2 = Bias(c_out)
        self.binary_conv = FlatBinaryConv(c_in, c_out, stride, flat)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.downsample = pooled(c_in, c_out, stride) if stride > 1 else None

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        z = self.move0(x) if self.react else x
        z = self.bn1(self.binary_conv(z.sign())) + shortcut
        return self.move2(self.prelu(self.move1(z))) if self.react else z


class BiDetConv(nn.Module):
    def __init__(self, c_in, c_out, stride, res_func):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.res_func = res_func

    def forward(self, x):
        weight = self.conv.weight
        weight = weight.abs().mean((1, 2, 3), keepdim=True) * weight.sign()
        z = F.pad(x.sign(), (1, 1, 1, 1), value=-1.0)
        z = self.bn(F.conv2d(z, weight, None, self.conv.stride))
        return z + (x if self.res_func is None else self.res_func(x))


class BiDetBlock(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        shortcut = pooled(c_in, c_out, stride) if stride > 1 else None
        self.conv1 = BiDetConv(c_in, c_out, stride, shortcut)
        self.conv2 = BiDetConv(c_out, c_out, 1, None)

    def forward(self, x):
        return self.conv2(self.conv1(x))


class Published(nn.Module):
    def __init__(self, kind, depth=18, flat=None):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(512, 10)
        c_in = 64
        for i, (width, count) in enumerate(zip(WIDTHS, BLOCKS[depth])):
            blocks = []
            for n in range(count if kind == 'bidet' else 2 * count):
                stride = 2 if i and not n else 1
                if kind == 'bidet':
                    block = BiDetBlock(c_in, width, stride)
                else:
                    react = kind == 'reactnet'
                    block = OneConvBlock(
                        c_in,
                        width,
                        stride,
                        react,
                        not react if flat is None else flat,
                    )
                blocks.append(block)
                c_in = width
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(self.bn1(self.conv1(x)), 3, 2, 1)
        outs = []
        for i in range(1, 5):
            x = getattr(self, f'layer{i}')(x)
            outs.append(x)
        return outs


def fill(net):
    """Give every parameter and statistic a value that can be told."""
    torch.manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 20)
        elif isinstance(module, Bias):
            nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.5)
    for parameter in net.parameters():
        # torch.sign makes 0 of a weight that is 0; the notes say so.
        parameter.data[parameter.data == 0] = 0.1
    # In float64, rounding turns no sign.
    return net.double().eval()


def build(depth=18, **kwargs):
    return MODELS.build(dict(type='SURGEResNet', depth=depth, **kwargs))


@pytest.fixture(scope='module')
def published():
    return {k: fill(Published(k)) for k in ('bidet', 'reactnet', 'birealnet')}


@pytest.fixture(scope='module')
def backbone():
    init_default_scope('mmdet')
    return build()


SETTINGS = {
    'bidet': dict(conv_cfg=dict(type='SURGEConv2d', pad_value=-1)),
    'reactnet': {},
    'birealnet': {},
}


@pytest.mark.parametrize('kind', SETTINGS)
def test_outputs_are_those_of_the_published_network(
    published, kind, tmp_path, backbone
):
    net = published[kind]
    conversion = convert_published(net.state_dict(), backbone)
    assert conversion.layout == kind
    path = tmp_path / 'converted.pth'
    torch.save(conversion.state_dict, path)
    ours = build(
        init_cfg=dict(type='Pretrained', checkpoint=str(path)),
        **SETTINGS[kind],
    )
    ours.init_weights()
    ours.double().eval()
    # float32 in the file; the published network gets the same rounding.
    reference = Published(kind).double().eval()
    reference.load_state_dict(
        {k: v.float() for k, v in net.state_dict().items()}
    )
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for got, want in zip(ours(x), reference(x)):
            assert want.std() > 0.1
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    if kind == 'bidet':
        other = build(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
        other.init_weights()
        with torch.no_grad():
            got = other.double().eval()(x)[0]
        assert not torch.allclose(got, reference(x)[0])


def rows_by_status(conversion):
    found = {}
    for row in conversion.rows:
        found.setdefault(row.status, []).append(row)
    return found


@pytest.mark.parametrize('kind', SETTINGS)
def test_every_key_is_listed_once(published, kind, backbone):
    state = published[kind].state_dict()
    conversion = convert_published(state, backbone)
    rows = conversion.rows
    ours = [row.key for row in rows if row.status != 'unused']
    assert sorted(ours) == sorted(backbone.state_dict())
    taken = [r.source for r in rows if r.source and r.status != 'copied']
    assert sorted(taken) == sorted(state)
    status = rows_by_status(conversion)
    assert [r.source for r in status['unused']] == ['fc.weight', 'fc.bias']
    assert len(status['copied']) == 16
    assert all(r.key.endswith('.aux_weight') for r in status['copied'])
    assert [r.key for r in status['loaded'][:2]] == [
        'conv1.weight',
        'bn1.weight',
    ]
    if kind == 'reactnet':
        assert 'missing' not in status
        assert 'set' not in status
    else:
        assert len(status['set']) == 16
        assert all(r.key.endswith('.1.weight') for r in status['set'])
        # Shifts: three in each half block, all zero at the start.
        assert len(status['missing']) == 48
        assert all(r.key.endswith('.shift') for r in status['missing'])
    assert conversion.random == []
    for name, layer in named_surge_layers(backbone):
        weight = conversion.state_dict[f'{name}.weight']
        assert weight.shape == layer.weight.shape


@pytest.mark.parametrize(
    ('source', 'ours'),
    [
        ('layer2.1.binary_conv.weight', 'layer2.0.conv2.weight'),
        ('layer2.0.move0.bias', 'layer2.0.shift1.shift'),
        ('layer3.3.move0.bias', 'layer3.1.shift2.shift'),
        ('layer3.3.move1.bias', 'layer3.1.act2.0.shift'),
        ('layer3.2.prelu.weight', 'layer3.1.act1.1.weight'),
        ('layer4.1.move2.bias', 'layer4.0.act2.2.shift'),
        ('layer4.1.bn1.running_var', 'layer4.0.bn2.running_var'),
        ('layer4.0.downsample.1.weight', 'layer4.0.downsample.0.weight'),
        ('layer4.0.downsample.2.bias', 'layer4.0.downsample.1.bias'),
    ],
)
def test_reactnet_keys_by_hand(published, source, ours, backbone):
    state = published['reactnet'].state_dict()
    converted = convert_published(state, backbone).state_dict
    assert torch.equal(
        converted[ours].flatten(), state[source].flatten().float()
    )


@pytest.mark.parametrize(
    ('kind', 'flat'), [('reactnet', True), ('birealnet', False)]
)
def test_both_ways_of_storing_a_convolution(kind, flat, backbone):
    state = fill(Published(kind, flat=flat)).state_dict()
    end = 'weights' if flat else 'weight'
    key = f'layer1.3.binary_conv.{end}'
    conversion = convert_published(state, backbone)
    got = conversion.state_dict['layer1.1.conv2.weight']
    assert torch.equal(got, state[key].reshape(64, 64, 3, 3).float())


def test_depth_34():
    state = Published('birealnet', 34).state_dict()
    conversion = convert_published(state, build(34))
    assert conversion.random == []
    assert len(rows_by_status(conversion)['copied']) == 32
    with pytest.raises(ValueError, match=r'another depth.*\[3, 4, 6, 3\]'):
        convert_published(state, build(18))


def torchvision_state(name='resnet18'):
    import torchvision

    torch.manual_seed(1)
    return getattr(torchvision.models, name)(weights=None).state_dict()


@pytest.mark.parametrize('depth', [18, 34, 50])
def test_torchvision(depth):
    state = torchvision_state(f'resnet{depth}')
    conversion = convert_published(state, build(depth))
    assert conversion.layout == 'torchvision'
    assert conversion.random == []
    assert set(conversion.state_dict) == {
        k for k in state if not k.startswith('fc.')
    }
    status = rows_by_status(conversion)
    assert set(status) == {'loaded', 'copied', 'missing', 'unused'}
    assert all('.act' in r.key or '.shift' in r.key for r in status['missing'])


VGG = [64, 'M', 128, 128, 'M', 256, 256, 256, 'M', 512, 512, 512, 'M']
VGG += [512, 512, 512]


class BiDetVGGBlock(BiDetConv):
    """The same with other names and pooling rounded up where that matters."""

    def __init__(self, c_in, c_out, stride):
        super().__init__(c_in, c_out, stride, None)
        self.downsample = None
        if stride > 1:
            self.downsample = pooled(c_in, c_out, stride)
            self.downsample[0].ceil_mode = True

    def forward(self, x):
        # The parent adds x itself, or what its res_func makes of it.
        self.__dict__['res_func'] = self.downsample
        return super().forward(x)


def bidet_vgg():
    layers = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)]
    c_in = 64
    for i, v in enumerate(VGG):
        stride = 2 if v == 'M' else 1
        width = VGG[i + 1] if v == 'M' else v
        layers.append(BiDetVGGBlock(c_in, width, stride))
        c_in = width
    layers += [
        nn.MaxPool2d(3, 1, 1),
        nn.Conv2d(512, 1024, 3, bias=False),
        nn.BatchNorm2d(1024),
        nn.ReLU(),
        nn.Conv2d(1024, 1024, 1),
        nn.BatchNorm2d(1024),
        nn.ReLU(),
    ]
    return nn.ModuleList(layers)


def run_bidet_vgg(layers, x):
    for layer in layers[:14]:
        x = layer(x)
    first = x
    for layer in layers[14:19]:
        x = layer(x)
    weight = layers[19].weight
    weight = weight.abs().mean((1, 2, 3), keepdim=True) * weight.sign()
    x = F.pad(x.sign(), (6, 6, 6, 6), value=-1.0)
    x = F.conv2d(x, weight, dilation=6)
    for layer in layers[20:]:
        x = layer(x)
    return first, x


def test_bidet_vgg(tmp_path):
    torch.manual_seed(0)
    layers = fill(bidet_vgg())
    nn.init.normal_(layers[22].bias)
    layers.float().double()
    state = layers.state_dict()
    assert state['2.conv.weight'].shape == (64, 64, 3, 3)
    ours = MODELS.build(
        dict(
            type='SURGESSDVGG',
            conv_cfg=dict(type='SURGEConv2d', pad_value=-1),
        )
    )
    conversion = convert_published(state, ours)
    assert conversion.layout == 'bidet-vgg'
    assert conversion.random == []
    rows = {row.key: row for row in conversion.rows if row.key}
    assert set(rows) == set(ours.state_dict())
    assert not [row for row in conversion.rows if row.status == 'unused']
    assert rows['norm7.running_mean'].note == 'less 22.bias'
    assert rows['act7.1.weight'].status == 'missing'
    assert rows['act6.1.weight'].note == 'to 0'
    path = tmp_path / 'vgg.pth'
    torch.save(conversion.state_dict, path)
    ours.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    ours.init_weights()
    ours.double().eval()
    x = torch.randn(1, 3, 64, 72, dtype=torch.float64)
    with torch.no_grad():
        first, second = ours(x)
        want_first, want_second = run_bidet_vgg(layers, x)
    torch.testing.assert_close(first, want_first, rtol=1e-5, atol=1e-5)
    # Behind conv7 ours keeps the negatives.
    assert (second < 0).any()
    torch.testing.assert_close(
        second.relu(), want_second, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize('name', ['vgg16', 'vgg16_bn'])
def test_torchvision_vgg(name):
    import torchvision

    with torch.device('meta'):
        shapes = getattr(torchvision.models, name)(weights=None).state_dict()
        backbone = MODELS.build(dict(type='SURGESSDVGG'))
    conversion = convert_published(shapes, backbone)
    assert conversion.layout == 'torchvision-vgg'
    renamed = {
        r.source: r.key for r in conversion.rows if r.status == 'renamed'
    }
    assert set(renamed) == {k for k, v in shapes.items() if v.dim() == 4}
    # As the backbone itself takes them.
    with warnings.catch_warnings():
        # Meta tensors are not copied; keys are what counts.
        warnings.simplefilter('ignore')
        result = backbone.load_state_dict(shapes, strict=False)
    assert not set(renamed.values()) & set(result.missing_keys)
    assert not set(renamed) & set(result.unexpected_keys)
    second = [k for k in renamed.values() if k.startswith('stage2')]
    assert second == ['stage2.0.conv.weight', 'stage2.2.conv.weight']
    assert len(conversion.random) == 4 + 4 + 2


def test_wrappers_and_prefixes(published):
    state = published['birealnet'].state_dict()
    parallel = {f'module.{k}': v for k, v in state.items()}
    for checkpoint in (
        state,
        parallel,
        dict(epoch=3, state_dict=parallel, best_top1_acc=torch.tensor(1.0)),
        dict(model=state),
    ):
        assert set(unwrap(checkpoint)) == set(state)


@pytest.mark.parametrize(
    'checkpoint',
    [{}, [1], dict(epoch=3), dict(state_dict=dict(a=1)), torch.zeros(3)],
)
def test_what_is_no_state_dict(checkpoint):
    with pytest.raises(ValueError, match='no state dict in the file'):
        unwrap(checkpoint)


def test_unknown_layouts_are_told(backbone):
    with pytest.raises(ValueError, match='keys are such as stem.w'):
        detect_layout(['stem.w', 'head.b'])
    with pytest.raises(ValueError, match="surge_det's own keys already"):
        detect_layout([f'backbone.{key}' for key in backbone.state_dict()])
    with pytest.raises(ValueError, match="layout='x'"):
        convert_published({}, backbone, 'x')


def test_nothing_fits(published, backbone):
    state = published['birealnet'].state_dict()
    body = {k: v for k, v in state.items() if 'layer' in k}
    with pytest.raises(ValueError, match='nothing of the file fits'):
        convert_published({'fc.weight': state['fc.weight']}, backbone, 'bidet')
    vgg = MODELS.build(dict(type='SURGESSDVGG'))
    with pytest.raises(ValueError, match='depth|nothing'):
        convert_published(body, vgg, 'birealnet')


def test_shapes_that_differ(published, backbone):
    state = dict(published['reactnet'].state_dict())
    state['layer1.0.move0.bias'] = torch.zeros(1, 32, 1, 1)
    state['layer4.1.binary_conv.weight'] = torch.zeros(512, 512, 1, 1)
    with pytest.raises(ValueError, match='shape') as error:
        convert_published(state, backbone)
    assert '2 shape(s) differ' in str(error.value)
    assert 'layer1.0.move0.bias (1, 32, 1, 1)' in str(error.value)
    assert 'layer4.0.conv2.weight (512, 512, 3, 3)' in str(error.value)


def test_what_is_missing_is_told(published, backbone):
    state = dict(published['reactnet'].state_dict())
    del state['layer4.1.binary_conv.weight'], state['layer1.0.bn1.bias']
    conversion = convert_published(state, backbone)
    assert conversion.random == ['layer4.0.conv2.weight']
    missing = [r.key for r in conversion.rows if r.status == 'missing']
    assert sorted(missing) == [
        'layer1.0.bn1.bias',
        'layer4.0.conv2.aux_weight',
        'layer4.0.conv2.weight',
    ]


def test_weights_that_are_only_signs_are_told(published, backbone):
    state = dict(published['reactnet'].state_dict())
    assert not any(
        'magnitudes' in n for n in convert_published(state, backbone).notes
    )
    for key in state:
        if 'binary_conv' in key:
            state[key] = state[key].sign()
    assert any(
        'magnitudes' in n for n in convert_published(state, backbone).notes
    )


def command(*args, ok=True):
    said = tool('convert_checkpoint.py', *args, root=ROOT, ok=ok)
    assert 'Traceback' not in said
    return said


def test_command(published, tmp_path, backbone):
    source, out = tmp_path / 'checkpoint.pth.tar', tmp_path / 'a' / 'b.pth'
    state = published['birealnet'].state_dict()
    torch.save(
        dict(
            epoch=1,
            state_dict={f'module.{k}': v for k, v in state.items()},
            best_top1_acc=torch.tensor(56.4),
            optimizer=dict(state={}, param_groups=[dict(lr=0.1)]),
        ),
        source,
        # As torch wrote files when that code was published.
        _use_new_zipfile_serialization=False,
    )
    said = command(str(source), str(out))
    assert 'layout: birealnet' in said
    loaded = torch.load(out, weights_only=True)
    total = len(backbone.state_dict())
    line = re.search(r'(\d+) keys of ours: (.*)', said)
    assert int(line[1]) == total
    assert sum(map(int, re.findall(r'\d+', line[2]))) == total
    assert '2 keys of theirs unused' in said
    listed = [row for row in said.splitlines() if ' layer' in row]
    assert len(listed) >= total - 6
    assert 'reshaped from (36864, 1)' in said
    assert {type(v) for v in loaded.values()} == {torch.Tensor}
    assert 'aux_weight' not in ' '.join(loaded)


class Evil:
    def __reduce__(self):
        return (os.system, ('true',))


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (None, 'does not exist'),
        (b'not a checkpoint', 'refused'),
        (b'', 'is no checkpoint'),
        (dict(state_dict=dict(w=torch.zeros(1)), x=Evil()), 'refused'),
        (dict(stem=torch.zeros(1)), 'the layout is none of'),
    ],
)
def test_command_refuses_with_a_message(content, said, tmp_path, capsys):
    source, out = tmp_path / 'in.pth', tmp_path / 'out.pth'
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    with pytest.raises(SystemExit) as error:
        main(['convert', str(source), str(out)])
    assert error.value.code == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
    for args in ([str(out), str(out)], [str(source), 'out.pkl']):
        with pytest.raises(SystemExit):
            main(['convert', *args])


def test_the_command_names_all_layouts():
    assert convert.LAYOUTS == LAYOUTS
