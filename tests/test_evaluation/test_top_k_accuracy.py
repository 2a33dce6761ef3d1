import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import METRICS

from surge_det.evaluation import TopKAccuracy

pytestmark = pytest.mark.usefixtures('mmdet_scope')


def samples(rows):
    return [dict(scores=torch.tensor(s), label=label) for s, label in rows]


def test_by_hand():
    metric = METRICS.build(
        dict(type='TopKAccuracy', topk=(1, 2), per_class=True)
    )
    metric.dataset_meta = dict(classes=('a', 'b', 'c'))
    rows = [
        ([3.0, 2.0, 1.0], 0),  # rank 1
        ([3.0, 2.0, 1.0], 0),  # rank 1
        ([1.0, 3.0, 2.0], 0),  # rank 3
        ([1.0, 2.0, 3.0], 1),  # rank 2
        ([2.0, 2.0, 0.0], 1),  # a tie counts as rank 2
    ]
    metric.process(None, samples(rows[:2]))
    metric.process(None, samples(rows[2:]))
    got = metric.evaluate(len(rows))
    assert got == pytest.approx(
        {
            'accuracy/top1': 100 * 2 / 5,
            'accuracy/top2': 100 * 4 / 5,
            # The class that does not occur is left out.
            'accuracy/mean_class': 100 * (2 / 3 + 0) / 2,
            'accuracy/a': 100 * 2 / 3,
            'accuracy/b': 0.0,
        }
    )


def test_equals_torch_on_random_scores():
    torch.manual_seed(0)
    scores, labels = torch.randn(200, 10), torch.randint(10, (200,))
    metric = TopKAccuracy()
    metric.process(
        None, [dict(scores=s, label=n) for s, n in zip(scores, labels)]
    )
    got = metric.evaluate(200)
    for k in (1, 5):
        hits = (scores.topk(k).indices == labels[:, None]).any(1)
        assert got[f'accuracy/top{k}'] == pytest.approx(
            100 * hits.float().mean().item(), abs=1e-4
        )


@pytest.mark.parametrize('topk', [(), (0,), (1.5,)])
def test_wrong_k(topk):
    with pytest.raises(ValueError, match='topk='):
        TopKAccuracy(topk)


def test_what_cannot_be_ranked():
    metric = TopKAccuracy((1, 5))
    with pytest.raises(ValueError, match='number of classes, 3'):
        metric.process(None, samples([([1.0, 2.0, 3.0], 0)]))
    metric = TopKAccuracy((1,))
    with pytest.raises(ValueError, match='NaN'):
        metric.process(None, samples([([1.0, float('nan')], 0)]))
