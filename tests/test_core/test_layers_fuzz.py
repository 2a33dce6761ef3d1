"""Layers of any arguments and shapes, and arguments that are none."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import approx_sign, expected, relative_error, ste

from surge_det.core import SURGEConv2d, SURGELinear

ESTIMATORS = [
    (None, ste(1.0)),
    (dict(type='STE', clip=0.5), ste(0.5)),
    (dict(type='STE', clip=None), ste(None)),
    (dict(type='ApproxSign'), approx_sign),
]
small = st.integers(1, 3)


def one_or_two(numbers):
    return numbers | st.tuples(numbers, numbers)


@st.composite
def applications(draw):
    """A layer, its input, and how the reference is called."""
    linear = draw(st.booleans())
    bias = draw(st.booleans())
    h_x, formula_x = draw(st.sampled_from(ESTIMATORS))
    h_w, formula_w = draw(st.sampled_from(ESTIMATORS))
    keywords = dict(
        binarize_weight=draw(st.booleans()),
        binarize_activation=draw(st.booleans()),
    )
    layer = dict(
        keywords,
        eta=draw(st.sampled_from([0.0, 0.2, 3.0])),
        activation_estimator=h_x,
        weight_estimator=h_w or dict(type='STE', clip=None),
        bias=bias,
        dtype=torch.float64,
    )
    formula = dict(
        keywords, h_x=formula_x, h_w=formula_w if h_w else ste(None)
    )
    torch.manual_seed(draw(st.integers(0, 99)))
    if linear:
        layer = SURGELinear(draw(small), draw(small), **layer)
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        x = torch.randn(*shape, layer.in_features, dtype=torch.float64)
        return layer, x, dict(formula, linear=True)
    groups = draw(small)
    geometry = dict(
        stride=draw(one_or_two(small)),
        padding=draw(one_or_two(st.integers(0, 3)) | st.just('valid')),
        dilation=draw(one_or_two(small)),
        groups=groups,
    )
    if draw(st.integers(0, 4)) == 0:
        geometry.update(stride=1, padding='same')
    if keywords['binarize_activation']:
        geometry['pad_value'] = draw(st.sampled_from([-1, 0, 1]))
    layer = SURGEConv2d(
        groups * draw(small),
        groups * draw(small),
        draw(one_or_two(small)),
        **layer,
        **geometry,
    )
    sizes = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), d * (k - 1) + 5))
        for k, d, p in zip(
            layer.kernel_size,
            layer.dilation,
            (0, 0) if isinstance(layer.padding, str) else layer.padding,
        )
    ]
    x = torch.randn(
        draw(st.integers(0, 2)),
        layer.in_channels,
        *sizes,
        dtype=torch.float64,
    )
    if draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    return layer, x, dict(formula, **geometry)


@given(applications(), st.booleans())
def test_layers_are_the_formula(application, ties):
    layer, x, keywords = application
    layer.begin_training()
    if ties:
        # Exactly 0, and at the ends of the window.
        x = (2 * x).round() / 2
    x.requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    want = expected(
        x,
        layer.weight,
        layer.aux_weight,
        layer.bias,
        grad,
        layer.ags.eta,
        **keywords,
    )
    pairs = [
        (out, want.out),
        (x.grad, want.x),
        (layer.weight.grad, want.weight),
        (layer.aux_weight.grad, want.aux_weight),
        (layer.ags.last_scale, want.scale),
    ]
    if layer.bias is not None:
        pairs.append((layer.bias.grad, want.bias))
    for actual, wanted in pairs:
        assert relative_error(actual, wanted) < 1e-9


# What may stand where something else is asked for; none is large.
junk = st.sampled_from(
    [-1, 0, 1, 2, 3, True, False, None, 0.5, 2.0, -0.0, math.nan, math.inf]
    + [
        '',
        'auto',
        'same',
        'valid',
        'zeros',
        'reflect',
        '3',
        'float32',
        'cpu',
        'x',
    ]
    + [(), (1,), (2, 2), [1, 1], (1, 0), (2, -1), (1.0, 1.0), (1, 1, 1)]
    + [
        [[1]],
        {},
        {'type': 'STE'},
        {'type': 'ReCU'},
        {'type': 'STE', 'clip': 0},
    ]
    + [{'type': None}, {'type': []}, {'clip': 1}, {'type': 'STE', 'x': 1}]
    + [torch.float32, torch.float64, torch.int8, torch.complex64, b'1', object]
    + [torch.float8_e4m3fn, torch.tensor(1), torch.ones(2), object(), 1j]
)
configs = st.builds(
    dict,
    st.dictionaries(
        st.sampled_from(['clip', 'leak', 'o_end', 'm', 't']), junk, max_size=2
    ),
    type=st.sampled_from(['STE', 'ReSTE', 'EDE', 'ApproxSign', 'IRNet']),
)
ARGUMENTS = {
    SURGEConv2d: dict(in_channels=2, out_channels=2, kernel_size=3),
    SURGELinear: dict(in_features=2, out_features=2),
}
GEOMETRY = ['stride', 'padding', 'dilation', 'groups', 'padding_mode']


@pytest.mark.parametrize('cls', list(ARGUMENTS))
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_junk_is_refused_by_the_constructor(cls, data):
    names = [*ARGUMENTS[cls], 'bias', 'device', 'dtype', *cls.keywords()]
    if cls is SURGEConv2d:
        names += GEOMETRY
    changes = data.draw(
        st.dictionaries(
            st.sampled_from(sorted(names)), junk | configs, max_size=3
        )
    )
    # A number is a GPU.
    if isinstance(changes.get('device'), int):
        del changes['device']
    said = None
    try:
        layer = cls(**{**ARGUMENTS[cls], **changes})
    except ValueError as error:
        said = str(error)
    if said is not None:
        assert any(name in said for name in changes), said
        return
    x = torch.randn(2, 6, dtype=layer.weight.dtype)
    if cls is SURGEConv2d:
        x = torch.randn(2, layer.in_channels, 20, 20, dtype=layer.weight.dtype)
    else:
        x = x[:, :1].expand(2, layer.in_features)
    if layer.weight.device.type != 'meta':
        out = layer(x)
        assert out.shape[:2] == (2, layer.weight.shape[0])
        out.sum().backward()
