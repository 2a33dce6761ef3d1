import logging

import pytest

from surge_det.datasets.dropped import DroppedBoxes


def _boxes(**counts):
    boxes = DroppedBoxes('train.json')
    for reason, count in counts.items():
        for index in range(count):
            boxes.add(reason, f'{index}.jpg', lost=reason != 'crowd')
    return boxes


def test_nothing_dropped_is_no_line(log):
    _boxes().check(0, 0.05)
    assert log == []


def test_one_line_has_counts_and_first_files(log):
    boxes = _boxes(bad=7, outside=1)
    boxes.add('bad', '0.jpg')
    boxes.check(191, 0.05)
    ((level, text),) = log
    assert level == logging.WARNING
    assert text == (
        'train.json: 9 of 200 boxes are left out: 8 bad (0.jpg, 1.jpg, '
        '2.jpg, 3.jpg, 4.jpg and 2 more); 1 outside (0.jpg)'
    )


@pytest.mark.parametrize(('kept', 'refused'), [(19, False), (18, True)])
def test_more_than_allowed_is_refused(log, kept, refused):
    if refused:
        with pytest.raises(ValueError, match=r'1 bad.*5.3% are lost.*max_dr'):
            _boxes(bad=1).check(kept, 0.05)
    else:
        _boxes(bad=1).check(kept, 0.05)
    assert len(log) == 1 - refused


def test_crowd_is_told_and_no_loss(log):
    _boxes(crowd=50).check(1, 0.05)
    ((level, text),) = log
    assert level == logging.INFO
    assert '50 of 51 boxes are left out: 50 crowd' in text


@pytest.mark.parametrize('reason', ['crowd', 'bad'])
def test_nothing_left_is_refused_unless_all_is_allowed(log, reason):
    with pytest.raises(ValueError, match='None is left.*max_dropped=0.5'):
        _boxes(**{reason: 3}).check(0, 0.5)
    _boxes(**{reason: 3}).check(0, 1)
    assert len(log) == 1
