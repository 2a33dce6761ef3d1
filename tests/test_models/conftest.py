import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: E402, F401


@pytest.fixture(autouse=True)
def _scope(mmdet_scope):
    pass
