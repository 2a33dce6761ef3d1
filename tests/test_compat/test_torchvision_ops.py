import math

import pytest
import torch

pytest.importorskip('torchvision')

from surge_det.compat import torchvision_ops as ops


def _boxes(n, seed=0, size=40.0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 2, generator=generator) * size
    side = torch.rand(n, 2, generator=generator) * size / 2
    scores = torch.rand(n, generator=generator)
    return torch.cat([low, low + side], dim=1), scores


def _iou(a, b, offset):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def _plain_nms(boxes, scores, threshold, offset):
    boxes = boxes.tolist()
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if all(_iou(boxes[i], boxes[k], offset) <= threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.2, 0.5])
def test_nms_equals_the_greedy_loop(offset, threshold):
    boxes, scores = _boxes(60)
    kept = ops.nms(boxes, scores, iou_threshold=threshold, offset=offset)
    assert kept.dtype == torch.int64
    assert kept.tolist() == _plain_nms(boxes, scores, threshold, offset)


def test_nms_offset_decides():
    # Widths 2 and 2, overlap 1: IoU 1/3. Counted in whole pixels: 3, 3 and
    # 2 of them, on 3 rows: 6 / 12 = 1/2.
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]])
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.4, offset=0).tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.4, offset=1).tolist() == [0]


def test_nms_takes_no_boxes_and_half_precision():
    empty = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, 0)
    assert empty.shape == (0,)
    boxes, scores = _boxes(20)
    boxes = boxes.bfloat16()
    expected = _plain_nms(boxes.float(), scores, 0.3, 0)
    assert ops.nms(boxes, scores, 0.3, 0).tolist() == expected


def _plain_soft_nms(boxes, scores, threshold, sigma, min_score, method, off):
    """The loop of mmcv's CPU kernel, swap for swap."""
    rows = [
        [*box, score, i]
        for i, (box, score) in enumerate(zip(boxes.tolist(), scores.tolist()))
    ]
    n, i, dets = len(rows), 0, []
    while i < n:
        best = max(range(i, n), key=lambda j: (rows[j][4], -j))
        rows[i], rows[best] = rows[best], rows[i]
        dets.append(rows[i][:5])
        pos = i + 1
        while pos < n:
            iou = _iou(rows[i], rows[pos], off)
            weight = 1.0
            if method == 0 and iou >= threshold:
                weight = 0.0
            elif method == 1 and iou >= threshold:
                weight = 1 - iou
            elif method == 2:
                weight = math.exp(-iou * iou / sigma)
            rows[pos][4] *= weight
            if rows[pos][4] < min_score:
                rows[pos] = rows[n - 1][:]
                n -= 1
            else:
                pos += 1
        i += 1
    return dets, [row[5] for row in rows[:n]]


@pytest.mark.parametrize('method', [0, 1, 2])
@pytest.mark.parametrize('offset', [0, 1])
def test_softnms_equals_the_kernels_loop(method, offset):
    boxes, scores = _boxes(40, seed=method)
    dets = boxes.new_empty(40, 5)
    inds = ops.softnms(
        boxes, scores, dets, 0.3, 0.5, 0.1, method=method, offset=offset
    )
    expected, expected_inds = _plain_soft_nms(
        boxes, scores, 0.3, 0.5, 0.1, method, offset
    )
    assert 1 < len(expected_inds) < 40
    assert inds.tolist() == expected_inds
    torch.testing.assert_close(dets[: len(inds)], torch.tensor(expected))


def _bilinear(plane, y, x):
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    ly = 0.0 if y0 == height - 1 else y - y0
    lx = 0.0 if x0 == width - 1 else x - x0
    return (
        (1 - ly) * (1 - lx) * plane[y0, x0]
        + (1 - ly) * lx * plane[y0, x1]
        + ly * (1 - lx) * plane[y1, x0]
        + ly * lx * plane[y1, x1]
    )


def _plain_roi_align(x, rois, size, scale, ratio, aligned):
    out = x.new_zeros(len(rois), x.shape[1], *size)
    shift = 0.5 if aligned else 0.0
    for k, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (v * scale - shift for v in box)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        down = ratio or math.ceil(bin_h)
        across = ratio or math.ceil(bin_w)
        for c in range(x.shape[1]):
            for ph in range(size[0]):
                for pw in range(size[1]):
                    samples = [
                        _bilinear(
                            x[int(image), c],
                            y1 + (ph + (i + 0.5) / down) * bin_h,
                            x1 + (pw + (j + 0.5) / across) * bin_w,
                        )
                        for i in range(down)
                        for j in range(across)
                    ]
                    out[k, c, ph, pw] = sum(samples) / len(samples)
    return out


_ROIS = torch.tensor(
    [[0, 1.0, 2.0, 11.0, 9.0], [1, -3.0, 4.0, 6.0, 20.0], [1, 5, 5, 5.2, 5.1]]
)


def _align_args(scale, ratio, aligned):
    return {
        'aligned_height': 2,
        'aligned_width': 3,
        'spatial_scale': scale,
        'sampling_ratio': ratio,
        'pool_mode': 1,
        'aligned': aligned,
    }


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_equals_bilinear_sampling(ratio, aligned):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 7, 8, dtype=torch.float64, requires_grad=True)
    rois = _ROIS.double()
    expected = _plain_roi_align(x, rois, (2, 3), 0.5, ratio, aligned)
    grad = torch.randn_like(expected)
    expected.backward(grad)

    args = _align_args(0.5, ratio, aligned)
    unused = x.new_zeros(0)
    output = x.new_zeros(3, 2, 2, 3)
    ops.roi_align_forward(x.detach(), rois, output, unused, unused, **args)
    torch.testing.assert_close(output, expected.detach())
    grad_input = x.new_zeros(x.shape)
    ops.roi_align_backward(grad, rois, unused, unused, grad_input, **args)
    torch.testing.assert_close(grad_input, x.grad)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_keeps_half_precision_outside(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 7, 8).to(dtype)
    args, unused = _align_args(0.5, 2, True), x.new_zeros(0)
    output = x.new_zeros(3, 2, 2, 3)
    ops.roi_align_forward(x, _ROIS.to(dtype), output, unused, unused, **args)
    rois = _ROIS.to(dtype).double()
    expected = _plain_roi_align(x.double(), rois, (2, 3), 0.5, 2, True)
    torch.testing.assert_close(output, expected.to(dtype))
    grad_input = torch.zeros_like(x)
    ops.roi_align_backward(
        torch.ones_like(output), rois, unused, unused, grad_input, **args
    )
    assert grad_input.dtype == dtype
    assert grad_input.abs().sum() > 0


def test_roi_align_max_is_refused():
    x = torch.zeros(1, 1, 4, 4)
    args = {**_align_args(1.0, 0, True), 'pool_mode': 0}
    output = x.new_zeros(3, 1, 2, 3)
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        ops.roi_align_forward(x, _ROIS, output, output, output, **args)


def _plain_roi_pool(x, rois, size, scale):
    """mmcv's kernel, thread for thread."""
    height, width = x.shape[2:]
    shape = (len(rois), x.shape[1], *size)
    output, argmax = x.new_zeros(shape), torch.full(shape, -1)
    for k, (image, *box) in enumerate(rois.tolist()):
        x1, y1 = box[0] * scale, box[1] * scale
        roi_w = (box[2] + 1) * scale - x1
        roi_h = (box[3] + 1) * scale - y1
        if roi_w <= 0 or roi_h <= 0:
            continue
        for c in range(x.shape[1]):
            for ph in range(size[0]):
                for pw in range(size[1]):
                    rows = [
                        math.floor(ph * roi_h / size[0] + y1),
                        math.ceil((ph + 1) * roi_h / size[0] + y1),
                    ]
                    columns = [
                        math.floor(pw * roi_w / size[1] + x1),
                        math.ceil((pw + 1) * roi_w / size[1] + x1),
                    ]
                    rows = [min(max(v, 0), height) for v in rows]
                    columns = [min(max(v, 0), width) for v in columns]
                    best = -math.inf
                    for h in range(*rows):
                        for w in range(*columns):
                            value = float(x[int(image), c, h, w])
                            if value > best:
                                best = value
                                output[k, c, ph, pw] = value
                                argmax[k, c, ph, pw] = h * width + w
    return output, argmax


def test_roi_pool_equals_the_kernel():
    torch.manual_seed(0)
    # Rounded, so that there are ties to break.
    x = (torch.randn(2, 2, 7, 8, dtype=torch.float64) * 2).round()
    rois = torch.cat(
        [
            _ROIS.double(),
            # Without area, and outside the image.
            torch.tensor([[0, 9.0, 9, 2, 12], [1, 40, 40, 50, 50]]),
        ]
    )
    args = {'pooled_height': 2, 'pooled_width': 3, 'spatial_scale': 0.5}
    output = torch.full((5, 2, 2, 3), 7.0, dtype=torch.float64)
    argmax = torch.zeros(5, 2, 2, 3, dtype=torch.int)
    ops.roi_pool_forward(x, rois, output, argmax, **args)
    expected, expected_argmax = _plain_roi_pool(x, rois, (2, 3), 0.5)
    torch.testing.assert_close(output, expected)
    assert argmax.tolist() == expected_argmax.tolist()

    grad = torch.randn_like(output)
    grad_input = torch.zeros_like(x)
    ops.roi_pool_backward(grad, rois, argmax, grad_input, **args)
    by_hand = torch.zeros_like(x)
    for k, c, ph, pw in (expected_argmax >= 0).nonzero().tolist():
        at = int(expected_argmax[k, c, ph, pw])
        by_hand[int(rois[k, 0]), c, at // 8, at % 8] += grad[k, c, ph, pw]
    torch.testing.assert_close(grad_input, by_hand)


def test_roi_pool_without_rois():
    x = torch.randn(1, 2, 4, 4)
    output, argmax = x.new_zeros(0, 2, 2, 2), torch.zeros(0, 2, 2, 2)
    rois = torch.zeros(0, 5)
    argmax = argmax.int()
    ops.roi_pool_forward(x, rois, output, argmax, 2, 2, 1.0)
    grad_input = torch.zeros_like(x)
    ops.roi_pool_backward(output, rois, argmax, grad_input, 2, 2, 1.0)
    assert grad_input.abs().sum() == 0


def _plain_focal_loss(x, target, gamma, alpha, weight):
    one_hot = torch.nn.functional.one_hot(target, x.shape[1] + 1)[:, :-1]
    p = x.sigmoid()
    loss = -alpha * one_hot * (1 - p) ** gamma * p.log()
    loss = loss - (1 - alpha) * (1 - one_hot) * p**gamma * (1 - p).log()
    if weight is not None:
        row = [1.0 if t == x.shape[1] else weight[t].item() for t in target]
        loss = loss * loss.new_tensor(row)[:, None]
    return loss


@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.5, 0.7)])
def test_focal_loss_equals_the_formula(weighted, gamma, alpha):
    torch.manual_seed(0)
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 4, 2, 0, 4])  # 4 is background
    weight = torch.tensor([0.5, 2.0, 1.5, 3.0]).double() if weighted else None
    expected = _plain_focal_loss(x, target, gamma, alpha, weight)
    expected.sum().backward()

    given = x.new_zeros(0) if weight is None else weight
    output = torch.zeros_like(expected)
    ops.sigmoid_focal_loss_forward(
        x.detach(), target, given, output, gamma=gamma, alpha=alpha
    )
    torch.testing.assert_close(output, expected.detach())
    grad = torch.zeros_like(x)
    ops.sigmoid_focal_loss_backward(
        x.detach(), target, given, grad, gamma=gamma, alpha=alpha
    )
    torch.testing.assert_close(grad, x.grad)


def test_focal_loss_stays_finite_for_saturated_logits():
    x = torch.tensor([[60.0, -60.0]], dtype=torch.float16).repeat(3, 1)
    target = torch.tensor([0, 1, 2])
    for function in (
        ops.sigmoid_focal_loss_forward,
        ops.sigmoid_focal_loss_backward,
    ):
        output = torch.zeros_like(x)
        function(x, target, x.new_zeros(0), output, gamma=2.0, alpha=0.25)
        assert output.isfinite().all()


def test_focal_loss_refuses_a_class_above_background():
    x = torch.zeros(1, 3)
    with pytest.raises(ValueError, match='class 4'):
        ops.sigmoid_focal_loss_forward(
            x, torch.tensor([4]), x.new_zeros(0), x.clone(), 2.0, 0.25
        )


def test_unsupported_op_raises_when_called():
    op = ops.unsupported_op('carafe_forward')
    with pytest.raises(NotImplementedError, match='carafe_forward.*mim'):
        op(1, 2, key=3)
    with pytest.raises(AttributeError, match='__path__'):
        ops.unsupported_op('__path__')
