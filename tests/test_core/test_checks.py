"""Messages name the argument, the value and what is allowed."""

import math
from dataclasses import dataclass

import pytest

from surge_det.core import checks


@pytest.mark.parametrize('bad', [True, '1', None, math.nan, math.inf, -1.0])
def test_numbers(bad):
    with pytest.raises(ValueError, match='^x=.* not allowed: a finite numb'):
        checks.number('x', bad, low=0)
    assert checks.number('x', 0, low=0) == 0
    assert type(checks.number('x', 3)) is float


def test_bounds_of_numbers():
    with pytest.raises(ValueError, match='x=0 is not allowed: .* > 0'):
        checks.number('x', 0, above=0)
    with pytest.raises(ValueError, match=r'a number in \[0, 1\]'):
        checks.number('x', 1.5, low=0, high=1)
    assert checks.number('x', None, or_none=True) is None
    with pytest.raises(ValueError, match='None or a finite number >= 0'):
        checks.number('x', -1, low=0, or_none=True)


@pytest.mark.parametrize('bad', [True, 1.0, '1', None, 0])
def test_integers(bad):
    with pytest.raises(ValueError, match='n=.*: an integer >= 1'):
        checks.integer('n', bad, 1)
    assert checks.integer('n', 1, 1) == 1
    assert checks.integer('n', None, 1, or_none=True) is None
    with pytest.raises(ValueError, match='n=.*: None or an integer >= 1'):
        checks.integer('n', 0, 1, or_none=True)


@pytest.mark.parametrize(
    'bad', [0, -1, True, 1.5, (1, 0), [2, None], (1,), ()]
)
def test_pairs(bad):
    with pytest.raises(ValueError, match='b=.*: an integer >= 1, or a pair'):
        checks.pairs(1, a=1, b=bad)
    checks.pairs(1, a=(1, 2), b=3, c=[4, 5])
    with pytest.raises(ValueError, match=r'b=\(1, 2\).*: an integer >= 1'):
        checks.integers(1, a=1, b=(1, 2))


def test_booleans_and_choices():
    assert checks.boolean('b', False) is False
    with pytest.raises(ValueError, match='b=1 is not allowed: True or False'):
        checks.boolean('b', 1)
    assert checks.one_of('c', 'x', 'xy') == 'x'
    with pytest.raises(ValueError, match=r"c='z' .*: one of \['x', 'y'\]"):
        checks.one_of('c', 'z', ('x', 'y'))


def test_settings_of_a_dataclass():
    @dataclass
    class Settings:
        a: int = 1

    assert checks.from_settings(Settings, {'a': 2}, 'it') == Settings(2)
    with pytest.raises(ValueError, match=r"it: unknown \['b'\]; .*\['a'\]"):
        checks.from_settings(Settings, {'b': 2}, 'it')
