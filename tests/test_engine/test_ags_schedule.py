import math

import pytest

from surge_det.engine import AGSSchedule


def test_constant_by_default():
    schedule = AGSSchedule()
    assert schedule.eta is None
    assert [schedule.factor(t, -1) for t in (0, 1, 10**6)] == [1.0, 1.0, 1.0]


def test_warmup_is_linear():
    schedule = AGSSchedule(eta=0.4, warmup_iters=4, warmup_start=0.5)
    # 0.5 + 0.5 * t / 4
    assert [schedule.factor(t, 100) for t in range(6)] == [
        0.5,
        0.625,
        0.75,
        0.875,
        1.0,
        1.0,
    ]


@pytest.mark.parametrize(
    ('decay', 'expected'),
    [
        # p = 0, 1/4, 1/2, 3/4, 1 at t = 10, 12, 14, 16, 18; d = 0.2.
        ('linear', [1.0, 0.8, 0.6, 0.4, 0.2]),
        (
            'cosine',
            [
                1.0,
                0.2 + 0.4 * (1 + math.sqrt(0.5)),
                0.6,
                0.2 + 0.4 * (1 - math.sqrt(0.5)),
                0.2,
            ],
        ),
    ],
)
def test_decay_follows_warmup(decay, expected):
    schedule = AGSSchedule(warmup_iters=10, decay=decay, decay_end=0.2)
    assert schedule.factor(5, 18) == 0.5
    got = [schedule.factor(t, 18) for t in (10, 12, 14, 16, 18)]
    assert got == pytest.approx(expected)
    assert schedule.factor(40, 18) == pytest.approx(0.2)


def test_warmup_longer_than_the_run():
    schedule = AGSSchedule(warmup_iters=10, decay='linear')
    assert schedule.factor(4, 5) == 0.4


def test_decay_needs_the_number_of_iterations():
    with pytest.raises(ValueError, match='initialize_count_status'):
        AGSSchedule(decay='linear').factor(0, -1)


@pytest.mark.parametrize(
    ('settings', 'named'),
    [
        ({'eta': -0.1}, 'eta=-0.1'),
        ({'eta': float('nan')}, 'eta=nan'),
        ({'eta': '0.2'}, "eta='0.2'"),
        ({'eta': True}, 'eta=True'),
        ({'warmup_iters': -1}, 'warmup_iters=-1'),
        ({'warmup_iters': 1.5}, 'warmup_iters=1.5'),
        ({'warmup_start': -1}, 'warmup_start=-1'),
        ({'decay': 'step'}, "decay='step'.*cosine"),
        ({'decay_end': float('inf')}, 'decay_end=inf'),
        ({'overrides': [('a', 1)]}, 'overrides='),
        ({'overrides': {'a.*': -1}}, r"overrides\['a\.\*'\]=-1"),
        ({'etaa': 0.2}, 'etaa.*eta.*warmup_iters'),
        (0.2, 'ags=0.2'),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        AGSSchedule.from_cfg(settings)


def test_later_pattern_wins():
    schedule = AGSSchedule(
        overrides={'backbone.*': 0.1, '*.conv2': 0.3, 'neck.?': 0.0}
    )
    names = ['backbone.a.conv1', 'backbone.a.conv2', 'neck.x', 'head']
    assert schedule.override_etas(names) == {
        'backbone.a.conv1': 0.1,
        'backbone.a.conv2': 0.3,
        'neck.x': 0.0,
    }


def test_pattern_without_a_match():
    schedule = AGSSchedule(overrides={'backbone.*': 0.1, 'bakbone.*': 0.2})
    with pytest.raises(ValueError, match=r"'bakbone\.\*'.*backbone\.conv1"):
        schedule.override_etas(['backbone.conv1'])
