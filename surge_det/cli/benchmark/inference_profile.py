"""What takes the time of a 1-bit network and of a detector around it."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from surge_det.deploy.openvino import Network

# Stages of test_step -> where a detector has them, if it does.
_STAGES = {
    'data preprocessor': ['data_preprocessor', 'forward'],
    'dense network': ['extract_feat'],
    'proposals': ['rpn_head', 'predict'],
    'RoI extractor': ['roi_head', 'bbox_roi_extractor', 'forward'],
    'RoI network': ['roi_head', 'bbox_head', 'forward'],
    'boxes of RoIs': ['roi_head', 'bbox_head', 'predict_by_feat'],
    'boxes': ['bbox_head', 'predict_by_feat'],
}


def profile_network(
    network: Network, x: Tensor, runs: int
) -> list[tuple[str, str, int, float]]:
    """Say how long a network's operations take, by kind and execution.

    Args:
        network: Not compiled yet.
        x: Its input.
        runs: How often it runs; one more comes before.

    Returns:
        Kind of operation, such as Convolution; what executes it, such as
        ``brgconv_avx512_f32``; how many there are; seconds of all of them,
        the median over the runs. The longest first.
    """
    network.settings['PERF_COUNT'] = True
    request = network.compiled(tuple(x.shape)).create_infer_request()
    seen = []
    for _ in range(runs + 1):
        request.infer([x.numpy()])
        groups = defaultdict(list)
        for info in request.profiling_info:
            taken = info.real_time.total_seconds()
            groups[info.node_type, info.exec_type].append(taken)
        seen.append(groups)
    # OpenVINO says of an operation that took less than a microsecond that it
    # was not run, as of one that is part of another. The first has others of
    # its kind beside it that were.
    operations = [
        (
            *key,
            len(seen[0][key]),
            statistics.median(sum(groups[key]) for groups in seen[1:]),
        )
        for key in seen[0]
        if any(sum(groups[key]) for groups in seen)
    ]
    return sorted(operations, key=lambda operation: -operation[-1])


def profile_stages(
    model: nn.Module, data: dict, runs: int
) -> list[tuple[str, float]]:
    """Say how long the stages from image to boxes take.

    Args:
        model: The detector.
        data: What ``test_step`` takes.
        runs: How often it runs; one more comes before.

    Returns:
        Names and seconds, the median over the runs, in the order of the
        detector; the last one is what no other stage has.
    """
    seen: list[dict[str, float]] = []

    def clocked(stage: str) -> Callable[[Callable], Callable]:
        def wrap(call: Callable) -> Callable:
            def timed(*args: Any, **kwargs: Any) -> Any:
                start = time.perf_counter()
                result = call(*args, **kwargs)
                taken = time.perf_counter() - start
                seen[-1][stage] = seen[-1].get(stage, 0.0) + taken
                return result

            return timed

        return wrap

    with ExitStack() as stack:
        for name, (*path, method) in _STAGES.items():
            owner: Any = model
            for part in path:
                owner = getattr(owner, part, None)
            if hasattr(owner, method):
                stack.enter_context(wrapped(owner, method, clocked(name)))
        for _ in range(runs + 1):
            seen.append({})
            start = time.perf_counter()
            model.test_step(data)
            total = time.perf_counter() - start
            seen[-1]['rest'] = total - sum(seen[-1].values())
    return [
        (name, statistics.median(taken[name] for taken in seen[1:]))
        for name in seen[0]
    ]


@contextmanager
def wrapped(
    owner: Any, method: str, wrap: Callable[[Callable], Callable]
) -> Iterator[None]:
    """Let ``wrap`` of an object's method take its place for a while."""
    own = vars(owner).get(method)
    setattr(owner, method, wrap(getattr(owner, method)))
    try:
        yield
    finally:
        if own is None:
            delattr(owner, method)
        else:
            setattr(owner, method, own)
