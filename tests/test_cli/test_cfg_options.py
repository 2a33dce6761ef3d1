"""Values of ``--cfg-options``: mmengine's, and blanks."""

import argparse
import random

import pytest

pytest.importorskip('mmengine', reason='needs the toolbox')

from mmengine.config import DictAction

from surge_det.cli.cfg_options import setting

ATOMS = (
    *('1', '-2', '1e-3', '.5', '1_000', 'inf', 'true', 'False', 'None', ''),
    *('a', 'x.y', 'data/coco/', 'a=b', "'a'", '"b"', "'1'", 'é', '-', 'm[0]'),
    *('s3://a/b', 'f(x)', 'a:b', '[]', '()', '{', '}', '{}_x'),
)


def theirs(value):
    parser = argparse.ArgumentParser()
    parser.add_argument('--set', nargs='*', action=DictAction)
    return parser.parse_args(['--set', f'key={value}']).set['key']


def made_of(rng, depth):
    if not depth or rng.random() < 0.3:
        return rng.choice(ATOMS)
    items = ','.join(
        made_of(rng, depth - 1) for _ in range(rng.randrange(1, 4))
    )
    left, right = rng.choice(['[]', '()'])
    return left + items + rng.choice(['', ',']) + right


def test_values_without_blanks_are_read_as_by_mmengine():
    rng = random.Random(0)
    values = [*ATOMS, 'a,b', '1,2,', ',', ',a', "'a,b'", "'a','b'", '"[1,2]"']
    values += ['[(a,b),(c,d)]', "['a','b']", '(1)', '(1,)', '[a', 'a(b']
    values += [made_of(rng, 3) for _ in range(500)]
    for value in values:
        read = setting(f'key={value}')
        assert repr(read) == repr(('key', theirs(value))), value


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('/data/sp ace/', '/data/sp ace/'),
        (' 7 ', 7),
        ("['traffic light','stop sign']", ['traffic light', 'stop sign']),
        ('[traffic light, stop sign]', ['traffic light', 'stop sign']),
        ('traffic light, stop sign', ['traffic light', 'stop sign']),
        ("('hot dog',)", ('hot dog',)),
        ("[' cat']", [' cat']),
        ('[ (1, 2), [a b, c], None ]', [(1, 2), ['a b', 'c'], None]),
        # mmengine's never end on these two.
        ('(1, 2), (3, 4)', [(1, 2), (3, 4)]),
        ('/data/of (1,2)', '/data/of (1,2)'),
    ],
)
def test_blanks_are_kept(text, value):
    assert setting(f'a.b={text}') == ('a.b', value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a', 'is not KEY=VALUE'),
        ('ace/', '"KEY=VALUE"'),
        ('a b=1', 'is not KEY=VALUE'),
        ('a=[1,(2]', 'brackets of .* do not match'),
        ('a=b(1,c', 'brackets of .* do not match'),
        ("a={'type':'X','depth':50}", 'KEY.SUBKEY=VALUE'),
        ("a=[dict(type='X')]", 'KEY.SUBKEY=VALUE'),
        ("a=['light, red','b']", 'a comma within quotes'),
    ],
)
def test_what_cannot_be_taken_is_refused(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        setting(text)
