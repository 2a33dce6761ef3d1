"""Ops of ``mmcv._ext`` in torchvision and torch, argument for argument.

Every function has the signature of mmcv's binding and, like it, writes its
result into the output tensors it is given. float16 and bfloat16 inputs are
computed in float32. Behaviour follows mmcv's own kernels (``ops/csrc``),
which are the reference wherever torchvision differs from them.
"""

import functools

import torch
from torch import Tensor

_FLT_MIN = torch.finfo(torch.float32).tiny

_REMEDY = (
    'install an mmcv with compiled ops that fits your torch (`pip install '
    '-U openmim && mim install "mmcv>=2.0.0,<2.2.0"`, or build the mmcv or '
    'onedl-mmcv you use from source with MMCV_WITH_OPS=1)'
)


def _at_least_float32(*tensors: Tensor) -> torch.dtype:
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    return torch.promote_types(dtype, torch.float32)


def _float32(value: float) -> float:
    """Round as mmcv's ``float`` arguments are, so that ties agree."""
    return torch.tensor(value, dtype=torch.float32).item()


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int
) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: XYXY in pixels, shape (N, 4).
        scores: Shape (N,).
        iou_threshold: A box goes when its IoU with a better one exceeds it.
        offset: 0 or 1, added to every width and height.

    Returns:
        Tensor: Indices of the kept boxes, best score first, int64.
    """
    from torchvision.ops import nms as tv_nms

    dtype = _at_least_float32(boxes, scores)
    boxes = boxes.to(dtype)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return tv_nms(boxes, scores.to(dtype), _float32(iou_threshold))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., 2017); CPU tensors, as in mmcv.

    Args:
        boxes: XYXY in pixels, shape (N, 4).
        scores: Shape (N,).
        dets: Output, shape (N, 5): box and decayed score, best first. Rows
            beyond the returned indices are undefined.
        iou_threshold: IoU from which methods 0 and 1 act.
        sigma: Width of the Gaussian of method 2.
        min_score: Boxes whose score falls below it are dropped.
        method: 0 drops (plain NMS), 1 decays linearly, 2 like a Gaussian.
        offset: 0 or 1, added to every width and height.

    Returns:
        Tensor: Indices into ``boxes`` of the rows of ``dets``, int64.
    """
    boxes = boxes.float().clone()
    scores = scores.float().clone()
    left = boxes.shape[0]
    inds = torch.arange(left)
    done = 0
    while done < left:
        best = done + int(scores[done:left].argmax())
        if best != done:
            swap, pair = [done, best], [best, done]
            boxes[swap] = boxes[pair]
            scores[swap] = scores[pair]
            inds[swap] = inds[pair]
        dets[done, :4] = boxes[done]
        dets[done, 4] = scores[done]
        done += 1
        rest = slice(done, left)
        iou = _iou_with_first(boxes[done - 1 : left], offset)
        if method == 2:
            weight = torch.exp(-(iou * iou) / sigma)
        else:
            decayed = 1 - iou if method == 1 else torch.zeros_like(iou)
            weight = torch.where(iou >= iou_threshold, decayed, 1.0)
        scores[rest] *= weight
        order = _drop_order((scores[rest] < min_score).tolist())
        if order is not None:
            kept = torch.tensor(order, dtype=torch.long) + done
            left = done + len(order)
            boxes[done:left] = boxes[kept]
            scores[done:left] = scores[kept]
            inds[done:left] = inds[kept]
    return inds[:left]


def _iou_with_first(boxes: Tensor, offset: int) -> Tensor:
    first, others = boxes[0], boxes[1:]
    sides = boxes[:, 2:] - boxes[:, :2] + offset
    area = sides[:, 0] * sides[:, 1]
    low = torch.maximum(first[:2], others[:, :2])
    high = torch.minimum(first[2:], others[:, 2:])
    overlap = (high - low + offset).clamp(min=0).prod(dim=1)
    return overlap / (area[0] + area[1:] - overlap)


def _drop_order(drop: list[bool]) -> list[int] | None:
    """Positions that stay, in the order mmcv's swap with the last leaves.

    The order decides between equal scores later on. None: all stay.
    """
    if not any(drop):
        return None
    order = list(range(len(drop)))
    i = 0
    while i < len(order):
        if drop[order[i]]:
            last = order.pop()
            if i < len(order):
                order[i] = last
        else:
            i += 1
    return order


def _check_avg(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "mmcv's compiled op 'roi_align' with pool_mode='max' is not "
            "available here (only pool_mode='avg' is served without "
            f'compiled ops): {_REMEDY}.'
        )


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign with average pooling (He et al., 2017).

    Args:
        input: Features, shape (N, C, H, W).
        rois: Image index and XYXY in pixels of the image, shape (K, 5).
        output: Output, shape (K, C, aligned_height, aligned_width).
        argmax_y: Unused, it is for maximum pooling.
        argmax_x: Unused, it is for maximum pooling.
        aligned_height: Bins down.
        aligned_width: Bins across.
        spatial_scale: Feature pixels per image pixel.
        sampling_ratio: Samples per bin and axis; 0: as many as pixels.
        pool_mode: 1 = average; 0 = maximum is not served.
        aligned: Shift by half a pixel, allow boxes narrower than one.

    Raises:
        NotImplementedError: If ``pool_mode`` is 0.
    """
    _check_avg(pool_mode)
    from torchvision.ops import roi_align

    dtype = _at_least_float32(input)
    output.copy_(
        roi_align(
            input.to(dtype),
            rois.to(dtype),
            (aligned_height, aligned_width),
            spatial_scale,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add to ``grad_input`` what `roi_align_forward` passes back.

    Args:
        grad_output: Shape (K, C, aligned_height, aligned_width).
        rois: As in the forward pass.
        argmax_y: Unused, it is for maximum pooling.
        argmax_x: Unused, it is for maximum pooling.
        grad_input: Output, shape (N, C, H, W), added to.
        aligned_height: Bins down.
        aligned_width: Bins across.
        spatial_scale: Feature pixels per image pixel.
        sampling_ratio: Samples per bin and axis; 0: as many as pixels.
        pool_mode: 1 = average; 0 = maximum is not served.
        aligned: As in the forward pass.

    Raises:
        NotImplementedError: If ``pool_mode`` is 0.
    """
    _check_avg(pool_mode)
    import torchvision  # noqa: F401  (registers the operator)

    dtype = _at_least_float32(grad_output)
    grad_input += torch.ops.torchvision._roi_align_backward(
        grad_output.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    ).to(grad_input.dtype)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool, the maximum over each bin (Girshick, 2015).

    mmcv's kernel does not round a RoI to whole feature pixels, torchvision's
    does, so bins differ; this one pools mmcv's bins. A RoI without area
    gives zeros and passes no gradient.

    Args:
        input: Features, shape (N, C, H, W).
        rois: Image index and XYXY in pixels of the image, shape (K, 5).
        output: Output, shape (K, C, pooled_height, pooled_width).
        argmax: Output, same shape, int32: flat index into H * W of each
            maximum, -1 for an empty bin.
        pooled_height: Bins down.
        pooled_width: Bins across.
        spatial_scale: Feature pixels per image pixel.
    """
    argmax.fill_(-1)
    output.zero_()
    if rois.shape[0] == 0:
        return
    height, width = input.shape[2:]
    dtype = _at_least_float32(input)
    rois = rois.to(dtype)
    start = rois[:, 1:3] * spatial_scale
    size = (rois[:, 3:5] + 1) * spatial_scale - start
    lows, highs = [], []
    for axis, bins, limit in (
        (0, pooled_width, width),
        (1, pooled_height, height),
    ):
        step = (size[:, axis] / bins)[:, None]
        at = torch.arange(bins, device=rois.device, dtype=dtype)
        low = torch.floor(at * step + start[:, axis, None])
        high = torch.ceil((at + 1) * step + start[:, axis, None])
        lows.append(low.clamp(0, limit).long().tolist())
        highs.append(high.clamp(0, limit).long().tolist())
    valid = (size > 0).all(dim=1).tolist()
    image = rois[:, 0].long().tolist()
    for k in range(rois.shape[0]):
        if valid[k]:
            _pool_one_roi(
                input[image[k]].to(dtype),
                (lows[0][k], highs[0][k]),
                (lows[1][k], highs[1][k]),
                output[k],
                argmax[k],
            )


def _pool_one_roi(feature, columns, rows, output, argmax) -> None:
    # Columns before rows: on a tie the first in raster order wins, as in
    # mmcv's loop.
    width = feature.shape[2]
    for pw, (x1, x2) in enumerate(zip(*columns)):
        if x2 <= x1:
            continue
        best, x = feature[:, :, x1:x2].max(dim=2)
        for ph, (y1, y2) in enumerate(zip(*rows)):
            if y2 <= y1:
                continue
            value, y = best[:, y1:y2].max(dim=1)
            output[:, ph, pw] = value.to(output.dtype)
            x_at_y = x.gather(1, (y + y1)[:, None])[:, 0]
            index = (y + y1) * width + x_at_y + x1
            argmax[:, ph, pw] = index.to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add to ``grad_input`` what `roi_pool_forward` passes back.

    Args:
        grad_output: Shape (K, C, pooled_height, pooled_width).
        rois: As in the forward pass.
        argmax: What the forward pass wrote.
        grad_input: Output, shape (N, C, H, W), added to.
        pooled_height: Bins down.
        pooled_width: Bins across.
        spatial_scale: Feature pixels per image pixel.
    """
    channels, height, width = grad_input.shape[1:]
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(
        channels, device=rois.device
    )
    index = plane[:, :, None, None] * (height * width) + argmax
    hit = argmax >= 0
    dtype = _at_least_float32(grad_output)
    grad = grad_output.new_zeros(grad_input.numel(), dtype=dtype)
    grad.index_add_(0, index[hit], grad_output[hit].to(dtype))
    grad_input += grad.view_as(grad_input).to(grad_input.dtype)


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Sigmoid focal loss (Lin et al., 2017), not reduced.

    With p = sigmoid(input): ``-alpha (1 - p)^gamma log(p)`` where the class
    is the target, ``-(1 - alpha) p^gamma log(1 - p)`` elsewhere, times
    ``weight[target]``.

    Args:
        input: Logits, shape (N, C).
        target: Class of each row, int64, shape (N,); C is background. mmcv's
            kernel reads beyond ``weight`` for it, here it has weight 1.
        weight: Weight of each class, shape (C,), or empty for none.
        output: Output, shape (N, C).
        gamma: Focusing exponent.
        alpha: Balance of the target class.

    Raises:
        ValueError: If a target is above C.
    """
    _check_target(target, input.shape[1])
    x, positive = _focal_inputs(input, target)
    p, log_p, log_not_p = _sigmoid_and_logs(x)
    loss = torch.where(
        positive,
        -alpha * (1 - p).pow(gamma) * log_p,
        -(1 - alpha) * p.pow(gamma) * log_not_p,
    )
    output.copy_(_times_class_weight(loss, target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative of `sigmoid_focal_loss_forward` by its logits.

    Args:
        input: Logits, shape (N, C).
        target: Class of each row, int64, shape (N,); C is background.
        weight: Weight of each class, shape (C,), or empty for none.
        grad_input: Output, shape (N, C).
        gamma: Focusing exponent.
        alpha: Balance of the target class.
    """
    x, positive = _focal_inputs(input, target)
    p, log_p, log_not_p = _sigmoid_and_logs(x)
    q = 1 - p
    grad = torch.where(
        positive,
        -alpha * q.pow(gamma) * (q - gamma * p * log_p),
        -(1 - alpha) * p.pow(gamma) * (gamma * q * log_not_p - p),
    )
    grad_input.copy_(_times_class_weight(grad, target, weight))


def _check_target(target: Tensor, num_classes: int) -> None:
    if target.numel() and int(target.max()) > num_classes:
        raise ValueError(
            f'target has class {int(target.max())}; with {num_classes} '
            f'classes it may be at most {num_classes} (background).'
        )


def _focal_inputs(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    classes = torch.arange(input.shape[1], device=target.device)
    return input.to(_at_least_float32(input)), target[:, None] == classes


def _sigmoid_and_logs(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p = x.sigmoid()
    return (
        p,
        p.clamp(min=_FLT_MIN).log(),
        (1 - p).clamp(min=_FLT_MIN).log(),
    )


def _times_class_weight(
    value: Tensor, target: Tensor, weight: Tensor
) -> Tensor:
    if weight.numel() == 0:
        return value
    weight = weight.to(value.dtype)
    with_background = torch.cat([weight, weight.new_ones(1)])
    num_classes = weight.numel()
    known = (target >= 0) & (target < num_classes)
    row = torch.where(known, target, num_classes)
    return value * with_background[row][:, None]


def _not_compiled() -> str:
    # mmcv's environment report calls these, so they answer instead of
    # raising.
    return 'n/a (mmcv without compiled ops)'


def unsupported_op(name: str):
    """Module ``__getattr__`` of the stand-in for ``mmcv._ext``.

    ``mmcv.ops`` only asks at import whether an op exists; what it gets here
    raises when called.

    Args:
        name: Name of the op.

    Returns:
        Callable: Raises NotImplementedError naming the op and the remedy.

    Raises:
        AttributeError: For a name that starts with an underscore.
    """
    if name.startswith('_'):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def call(*args, **kwargs):
        raise NotImplementedError(
            f'mmcv was installed without its compiled op {name!r}, and '
            f'surge_det has no torchvision equivalent of it: {_REMEDY}.'
        )

    call.__name__ = name
    return call


SERVED = {
    'nms': nms,
    'softnms': softnms,
    'roi_align_forward': roi_align_forward,
    'roi_align_backward': roi_align_backward,
    'roi_pool_forward': roi_pool_forward,
    'roi_pool_backward': roi_pool_backward,
    'sigmoid_focal_loss_forward': sigmoid_focal_loss_forward,
    'sigmoid_focal_loss_backward': sigmoid_focal_loss_backward,
    'get_compiler_version': _not_compiled,
    'get_compiling_cuda_version': _not_compiled,
}
