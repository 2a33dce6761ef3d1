import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: E402, F401

# isort: split
from mmengine.registry import init_default_scope  # noqa: E402


@pytest.fixture(autouse=True)
def _mmdet_scope():
    init_default_scope('mmdet')
