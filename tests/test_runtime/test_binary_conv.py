"""BinaryConv and Pool in ONNX Runtime against torch."""

import platform
import shutil
import subprocess

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('surge_runtime', reason='runtime/ is not installed')

import kernel_program  # noqa: E402
from one_op import run_op  # noqa: E402
from surge_runtime.library import kernel_path  # noqa: E402

EPILOGUE = (
    'bias',
    'factor',
    'offset',
    'residual',
    'pre',
    'slope',
    'post',
    'added',
)
NAMES = ('weight', 'start', 'scale', *EPILOGUE)
MAPS = ('residual', 'added')


def run(x, constants, **attrs):
    """Output of BinaryConv; all but maps is stored in the model."""
    inputs = [x, *(constants.get(name) for name in NAMES)]
    stored = [i + 1 for i, name in enumerate(NAMES) if name not in MAPS]
    return run_op('BinaryConv', inputs, constants=stored, **attrs)[0]


def pack(signs):
    """Signs (O, C, kh, kw) as bits (O, kh * kw, bytes)."""
    bits = (signs > 0).transpose(0, 2, 3, 1)
    packed = np.packbits(bits, axis=-1, bitorder='little')
    return packed.reshape(len(signs), -1, packed.shape[-1])


def layer(rng, c, o, groups=1, kernel=(3, 3), epilogue=()):
    """Random constants of a layer."""
    signs = np.where(rng.random((o, c // groups, *kernel)) < 0.5, -1, 1)

    def normal(n):
        return rng.standard_normal(n).astype(np.float32)

    constants = {
        'weight': pack(signs),
        'start': normal(c),
        'scale': normal(o),
        **{name: normal(o) for name in epilogue if name not in MAPS},
    }
    return signs, constants


def attributes(
    kernel=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), **more
):
    return {
        'kernel_shape': kernel,
        'strides': strides,
        'pads': pads,
        'dilations': dilations,
        'groups': 1,
        'pad_value': 0.0,
        **more,
    }


def reference(x, signs, c, attrs):
    """What torch makes of it, each step in float32."""
    top, left, bottom, right = attrs['pads']
    value = torch.from_numpy(x).permute(0, 3, 1, 2)
    start = torch.from_numpy(c['start']).view(-1, 1, 1)
    binary = torch.where(value >= start, 1.0, -1.0).double()
    binary = F.pad(
        binary, (left, right, top, bottom), value=attrs['pad_value']
    )
    y = F.conv2d(
        binary,
        torch.from_numpy(signs).double(),
        stride=attrs['strides'],
        dilation=attrs['dilations'],
        groups=attrs['groups'],
    )
    y = y.float().permute(0, 2, 3, 1)
    t = {k: torch.from_numpy(v) for k, v in c.items() if k != 'weight'}
    y = y * t['scale']
    if 'bias' in t:
        y = y + t['bias']
    if 'factor' in t:
        y = y * t['factor']
    if 'offset' in t:
        y = y + t['offset']
    if 'residual' in t:
        y = y + t['residual']
    if 'pre' in t:
        y = y + t['pre']
    if 'slope' in t:
        y = torch.where(y > 0, y, y * t['slope'])
    if 'post' in t:
        y = y + t['post']
    if 'added' in t:
        near = F.interpolate(
            t['added'].permute(0, 3, 1, 2), y.shape[1:3], mode='nearest'
        )
        y = y + near.permute(0, 2, 3, 1)
    return y.numpy()


@pytest.mark.parametrize('present', range(0, 2 ** len(EPILOGUE), 5))
def test_epilogue(present):
    chosen = [n for i, n in enumerate(EPILOGUE) if present >> i & 1]
    rng = np.random.default_rng(present)
    signs, constants = layer(rng, 40, 70, epilogue=chosen)
    x = rng.standard_normal((2, 9, 7, 40)).astype(np.float32)
    if 'residual' in chosen:
        shape = 2, 9, 7, 70
        constants['residual'] = rng.standard_normal(shape).astype(np.float32)
    attrs = attributes()
    if 'added' in chosen:
        shape = 2, 1 + present % 11, 1 + present % 5, 70
        constants['added'] = rng.standard_normal(shape).astype(np.float32)
    found = run(x, constants, **attrs)
    assert np.array_equal(found, reference(x, signs, constants, attrs))


def test_a_map_too_large_for_the_caches():
    rng = np.random.default_rng(0)
    signs, constants = layer(rng, 8, 64, epilogue=EPILOGUE)
    x = rng.standard_normal((1, 300, 300, 8)).astype(np.float32)
    for name, size in (('residual', 300), ('added', 150)):
        shape = 1, size, size, 64
        constants[name] = rng.standard_normal(shape).astype(np.float32)
    attrs = attributes()
    found = run(x, constants, **attrs)
    assert np.array_equal(found, reference(x, signs, constants, attrs))


@pytest.mark.parametrize(
    'attrs',
    [
        attributes(strides=(2, 3)),
        attributes(kernel=(1, 1), pads=(0, 0, 0, 0)),
        attributes(dilations=(2, 3), pads=(2, 3, 2, 3)),
        attributes(dilations=(6, 6), pads=(6, 6, 6, 6), pad_value=-1.0),
        attributes(groups=4, pad_value=1.0),
        attributes(kernel=(5, 2), pads=(4, 0, 1, 3), groups=2),
    ],
    ids=str,
)
def test_geometry(attrs):
    rng = np.random.default_rng(0)
    kernel, groups = attrs['kernel_shape'], attrs['groups']
    signs, constants = layer(rng, 36, 20, groups, kernel)
    x = rng.standard_normal((2, 40, 13, 36)).astype(np.float32)
    # On the threshold the sign is +1.
    x[..., 0] = constants['start'][0]
    found = run(x, constants, **attrs)
    assert np.array_equal(found, reference(x, signs, constants, attrs))


def test_map_that_is_too_small():
    _, constants = layer(np.random.default_rng(0), 8, 8)
    x = np.zeros((1, 2, 5, 8), np.float32)
    attrs = attributes(pads=(0, 0, 0, 0))
    assert run(x, constants, **attrs).shape == (
        1,
        0,
        3,
        8,
    )


def test_a_wrong_check_is_told():
    _, constants = layer(np.random.default_rng(0), 8, 8)
    x = np.zeros((1, 4, 4, 8), np.float32)
    with pytest.raises(Exception, match='other values than those stored'):
        run(x, constants, **attributes(check=1))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'groups': 3}, 'groups must divide the channels'),
        ({'strides': (0, 1)}, 'out of range'),
        ({'dilations': (257, 1)}, 'out of range'),
        ({'pads': (1, 1, 1)}, 'attribute pads has 3 values, not 4'),
        ({'pad_value': 0.5}, 'attribute pad_value is 0.5'),
        ({'kernel_shape': (2, 2)}, 'input weight has shape'),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    _, constants = layer(np.random.default_rng(0), 8, 8)
    x = np.zeros((1, 4, 4, 8), np.float32)
    with pytest.raises(Exception, match=message):
        run(x, constants, **{**attributes(), **change})


def test_constants_that_the_model_does_not_store_are_refused():
    _, constants = layer(np.random.default_rng(0), 8, 8, epilogue=['bias'])
    x = np.zeros((1, 4, 4, 8), np.float32)
    inputs = [x, *(constants[n] for n in ('weight', 'start', 'scale', 'bias'))]
    with pytest.raises(Exception, match='bias is not stored in the model'):
        run_op('BinaryConv', inputs, constants=(1, 2, 3), **attributes())


def test_sums_that_float32_does_not_hold_are_refused():
    c, kernel = 257, (256, 256)
    constants = {
        'weight': np.zeros((1, 256 * 256, 33), np.uint8),
        'start': np.zeros(c, np.float32),
        'scale': np.ones(1, np.float32),
    }
    x = np.zeros((1, 1, 1, c), np.float32)
    with pytest.raises(Exception, match=r'more than 2\^24 products'):
        run(x, constants, **attributes(kernel))


def test_every_kernel_is_exact(tmp_path):
    """The processor's instruction sets over 300 generated shapes each."""
    pytest.importorskip('ziglang', reason='ziglang, the compiler, is missing')
    program = kernel_program.build(tmp_path, platform.machine())
    found = subprocess.run([program], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    for name in {kernel_path(), 'generic'}:
        assert f'{name}: 300 shapes' in found.stdout


@pytest.mark.skipif(
    not shutil.which('qemu-aarch64-static'),
    reason='qemu-user-static is missing',
)
def test_neon_is_exact(tmp_path):
    pytest.importorskip('ziglang', reason='ziglang, the compiler, is missing')
    program = kernel_program.build(tmp_path, 'aarch64')
    found = subprocess.run(
        ['qemu-aarch64-static', program], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
    assert 'neon: 300 shapes' in found.stdout


@pytest.mark.parametrize('mode', ['average', 'max'])
@pytest.mark.parametrize(
    ('kernel', 'stride', 'pad', 'ceil', 'count'),
    [
        (2, 2, 0, True, False),
        (2, 2, 0, True, True),
        (3, 2, 1, False, True),
        (3, 2, 1, True, False),
        (3, 1, 1, False, False),
        (2, 3, 1, True, True),
    ],
)
@pytest.mark.parametrize('size', [(1, 1), (7, 10), (8, 5)])
def test_pool(mode, kernel, stride, pad, ceil, count, size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 20)).astype(np.float32)
    image = torch.from_numpy(x).permute(0, 3, 1, 2)
    try:
        if mode == 'max':
            y = F.max_pool2d(image, kernel, stride, pad, ceil_mode=ceil)
        else:
            y = F.avg_pool2d(image, kernel, stride, pad, ceil, count)
    except RuntimeError:
        pytest.skip('torch refuses a map smaller than the window')
    (found,) = run_op(
        'Pool',
        [x],
        mode=mode,
        kernel_shape=(kernel, kernel),
        strides=(stride, stride),
        pads=(pad,) * 4,
        ceil_mode=int(ceil),
        count_include_pad=int(count),
    )
    assert np.array_equal(found, y.permute(0, 2, 3, 1).numpy())
