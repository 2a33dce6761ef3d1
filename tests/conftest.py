import gc

import pytest
import torch
from hypothesis import settings

# Fuzzing: the same few examples in each run of the suite, and as many others
# as one wants, with --hypothesis-profile=long.
settings.register_profile(
    'short',
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
)
settings.register_profile(
    'long', database=None, deadline=None, max_examples=5000, print_blob=True
)
settings.load_profile('short')


def pytest_collection_finish(session):
    # What the imports made is never garbage; to look through it takes a tenth
    # of the suite's time.
    gc.freeze()


@pytest.fixture
def mmdet_scope():
    """Let registries search mmdet, whatever tests before left."""
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')


@pytest.fixture(scope='module')
def threads_as_before():
    """Take back what a module's tests set, with its own fixtures."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
