"""Losses between what a student and its teacher compute of the same images."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn
from torchvision.ops import roi_align

from surge_det.core import checks
from surge_det.text import brief

from .seen import Seen

_EPS = 1e-6
# Of two proposals whose IoU is larger, one is left out.
_OVERLAP = 0.1


class TeacherError(ValueError):
    """A teacher cannot be had, or is not one for this student."""


class DistillLoss:
    """A loss that has nothing to learn itself.

    Args:
        weight: Factor >= 0; with 0 it is not computed.

    Raises:
        ValueError: If an argument is out of range.
    """

    # Whether it reads what heads emit, too.
    needs_heads: ClassVar[bool] = True
    # Whether the classes of both must be the same.
    needs_classes: ClassVar[bool] = False

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = checks.number('weight', weight, low=0)

    def check(self, student: Seen, teacher: Seen) -> None:
        """See that there is something to compare; once is enough.

        Raises:
            TeacherError: If there is not.
        """
        raise NotImplementedError

    def __call__(self, student: Seen, teacher: Seen) -> dict[str, Tensor]:
        """Return losses by name, ``weight`` not included."""
        raise NotImplementedError


@MODELS.register_module()
class LogitsDistillLoss(DistillLoss):
    r"""What the heads emit: scores and box deltas of the same anchors.

    With the teacher's probabilities :math:`p_i` at anchor ``i``, the
    student's :math:`q_i`, and :math:`w_i` the teacher's probability of an
    object there (the largest of its classes),

    .. math::

        L_{cls} = \frac{\sum_i w_i KL(p_i \| q_i)}{\sum_i w_i}
        + \frac{\sum_i (1 - w_i) KL(p_i \| q_i)}{\sum_i (1 - w_i)}, \quad
        L_{box} = \frac{\sum_i w_i \|t_i - s_i\|_1}{4 \sum_i w_i}

    with ``t`` and ``s`` the deltas: objects and the rest count as much as
    each other, as in the samples that an RPN learns from. Sigmoid scores are
    Bernoulli variables, one for each class. In the second stage, where the
    teacher looks at the student's RoIs, :math:`L_{cls}` is the mean of
    :math:`KL(p_i \| q_i)`, and deltas by class have each class's own weight.

    Source: Hinton et al. (arXiv 1503.02531), at temperature 1; for detectors
    Chen et al. (NeurIPS 2017, "Learning efficient object detection models
    with knowledge distillation"), which weigh by classes instead.

    Args:
        weight: As in :class:`DistillLoss`.
    """

    needs_classes = True

    def check(self, student: Seen, teacher: Seen) -> None:
        """As the base class says."""
        if student.head is None and student.roi is None:
            raise _no_head(type(self), 'student')
        if student.head is not None:
            _check_dense(student, teacher)
        if student.roi is not None:
            _check_roi(student, teacher)

    def __call__(self, student: Seen, teacher: Seen) -> dict[str, Tensor]:
        """As the base class says."""
        losses = {}
        if student.head is not None:
            levels = [
                _dense(student, teacher, level)
                for level in range(len(student.dense[0]))
            ]
            kl, apart, found = (torch.cat(each) for each in zip(*levels))
            losses['dense_cls'] = _mean(kl, found) + _mean(kl, 1 - found)
            losses['dense_box'] = _mean(apart, found)
        if student.roi is not None:
            losses |= _roi(student.roi, teacher.roi)
        return losses


def _no_head(loss: type[DistillLoss], whose: str) -> TeacherError:
    return TeacherError(
        f'{loss.__name__}: the {whose} has no head with anchors or points'
    )


def _check_dense(student: Seen, teacher: Seen) -> None:
    """See that two heads say the same with the same numbers."""
    if teacher.head is None:
        raise _no_head(LogitsDistillLoss, 'teacher')
    # YOLOv3 emits scores and deltas in one map.
    for whose, each in (('student', student), ('teacher', teacher)):
        if len(each.dense) < 2:
            raise TeacherError(
                f"LogitsDistillLoss: the {whose}'s head emits scores and "
                'deltas in one map'
            )
    _check_same(
        'head',
        *(
            {
                'levels': len(each.dense[0]),
                **_meaning(each.head),
                'scores, deltas': [
                    [tuple(x.shape) for x in maps] for maps in each.dense[:2]
                ],
            }
            for each in (student, teacher)
        ),
    )


def _check_roi(student: Seen, teacher: Seen) -> None:
    if teacher.roi is None:
        raise TeacherError(
            'LogitsDistillLoss: the student has a second stage, the teacher '
            'has none, or a cascade of them'
        )
    _check_same(
        'second stage',
        *(
            {
                **_meaning(each.roi_head),
                'scores, deltas': [tuple(x.shape) for x in each.roi],
            }
            for each in (student, teacher)
        ),
    )


def _meaning(head: nn.Module | None) -> dict[str, object]:
    """Return what a head's numbers mean, besides their shapes."""
    priors = getattr(head, 'prior_generator', None)
    coder = getattr(head, 'bbox_coder', None)
    anchors = getattr(priors, 'base_anchors', ())
    softmax = not getattr(head, 'use_sigmoid_cls', True)
    return {
        'strides': getattr(priors, 'strides', None),
        'anchors': [x.flatten().tolist() for x in anchors],
        'activation of scores': 'softmax' if softmax else 'sigmoid',
        'box coder': [type(coder).__name__]
        + [getattr(coder, name, None) for name in ('means', 'stds')],
    }


def _check_same(
    where: str, student: dict[str, object], teacher: dict[str, object]
) -> None:
    for what, ours in student.items():
        if ours != teacher[what]:
            raise TeacherError(
                f"LogitsDistillLoss: {what} of the student's {where} are "
                f"{brief(ours)}, of the teacher's {brief(teacher[what])}: "
                'classes, anchors and coders must be the same'
            )


def _dense(
    student: Seen, teacher: Seen, level: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return divergence, distance and weight of a level's anchors."""
    pairs = [
        (each.dense[0][level], each.dense[1][level])
        for each in (student, teacher)
    ]
    anchors = student.head.prior_generator.num_base_priors[level]
    scores, deltas = (
        [_by_anchor(x, anchors) for x in each] for each in zip(*pairs)
    )
    if getattr(student.head, 'use_sigmoid_cls', True):
        kl = _bernoulli_kl(*scores)
        found = scores[1].sigmoid().amax(-1)
    else:
        kl = _categorical_kl(*scores)
        # Background is the last class.
        found = scores[1].softmax(-1)[:, :-1].amax(-1)
    return kl.sum(-1), (deltas[0] - deltas[1]).abs().mean(-1), found


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum() / weight.sum().clamp(min=_EPS)


def _by_anchor(x: Tensor, anchors: int) -> Tensor:
    """(N, A·K, H, W) to (N·A·H·W, K)."""
    n, _, h, w = x.shape
    x = _exact(x).reshape(n, anchors, -1, h, w)
    return x.movedim(2, -1).flatten(0, -2)


def _roi(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    scores = [_exact(each[0]) for each in (student, teacher)]
    kl = _categorical_kl(*scores).sum() / max(len(scores[0]), 1)
    found = scores[1].softmax(-1)[:, :-1]
    apart = (_exact(student[1]) - _exact(teacher[1])).abs()
    # Not -1: there may be no RoI at all.
    apart = apart.view(len(apart), apart.shape[1] // 4, 4).mean(-1)
    if apart.shape[1] != found.shape[1]:
        # Deltas for all classes together.
        found = found.amax(-1, keepdim=True)
    return {'roi_cls': kl, 'roi_box': _mean(apart, found)}


def _exact(x: Tensor) -> Tensor:
    # Autocast's types are too narrow for sums.
    return x if x.dtype == torch.float64 else x.float()


def _bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    p = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, p, reduction='none')
    own = F.binary_cross_entropy_with_logits(teacher, p, reduction='none')
    return cross - own


def _categorical_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(
        student.log_softmax(-1),
        teacher.log_softmax(-1),
        reduction='none',
        log_target=True,
    )


@MODELS.register_module()
class PearsonDistillLoss(DistillLoss):
    r"""Features of the neck, each channel by its correlation (PKD).

    .. math:: L = \frac{1}{L} \sum_l \frac{1}{C} \sum_c (1 - r_{lc})

    with :math:`r_{lc}` Pearson's correlation of the student's and the
    teacher's channel ``c`` of level ``l``, over all images and positions. It
    is half the mean squared difference of what both are once each channel
    has mean 0 and variance 1.

    Where the teacher has other channels, see :func:`adapted`.

    Source: Cao et al., PKD (arXiv 2207.02039), eq. 4 to 6.

    Args:
        weight: As in :class:`DistillLoss`.
    """

    needs_heads = False

    def check(self, student: Seen, teacher: Seen) -> None:
        """As the base class says."""
        _check_features(self, student, teacher)

    def __call__(self, student: Seen, teacher: Seen) -> dict[str, Tensor]:
        """As the base class says."""
        losses = []
        for s, t in _feature_pairs(student, teacher):
            s, t = _standardized(adapted(s, t)), _standardized(t)
            losses.append((s - t).square().mean() / 2)
        return {'features': torch.stack(losses).mean()}


def _standardized(x: Tensor) -> Tensor:
    x = x - x.mean((0, 2, 3), keepdim=True)
    power = x.square().mean((0, 2, 3), keepdim=True)
    return x / (power + _EPS * power.detach().mean() + 1e-12).sqrt()


@MODELS.register_module()
class IDaDistillLoss(DistillLoss):
    r"""Features where student and teacher differ most (IDa-Det).

    Objects that either detector proposes are pairs of patches
    :math:`R^s_n, R^t_n`, cut from the same place of both necks, 7×7 from
    each level. A pair's discrepancy is

    .. math::

        \epsilon_n = \frac{1}{C} \sum_c
        \frac{\|R^s_{nc} - R^t_{nc}\|^2}{49 \sigma_{nc}^2}

    with :math:`\sigma_{nc}^2` the variance of channel ``c`` in both patches
    together, which makes it a number from 0 to 4. The share ``keep`` of the
    pairs with the largest one is distilled: the loss of a level is

    .. math::

        \frac{1}{C} \sum_c
        \frac{\sum_n \|R^s_{nc} - R^t_{nc}\|^2}{49 N \sigma_c^2}

    over these ``N`` pairs, with :math:`\sigma_c^2` the variance of the
    teacher's channel in them. It is 0 where nothing is proposed.

    Source: Xu et al., IDa-Det (arXiv 2210.03477, ECCV 2022): the pairs, the
    discrepancy, and the choice of pairs by it, with ``keep`` there gamma. Its
    entropy loss is the squared difference over a covariance, plus that one's
    logarithm, which the paper does not say how to keep positive. As its code
    does in effect, this takes the squared difference; the variance makes the
    weight one for all teachers. Over the variance of each pair, as in the
    discrepancy, the gradient has no bound where a patch is flat.

    Where the teacher has other channels, the patches are mapped as
    :func:`adapted` does: all to choose, then the chosen ones anew.

    Args:
        weight: As in :class:`DistillLoss`. At 0.4 its gradient in the
            backbone is about as large as the detection loss's at the start
            of a training on BCCD.
        keep: Share of the pairs, 0 to 1; one pair is always kept.
        score: The least score of a proposal.
    """

    def __init__(
        self,
        weight: float = 0.4,
        keep: float = 0.6,
        score: float = 0.85,
    ) -> None:
        super().__init__(weight)
        self.keep = checks.number('keep', keep, low=0, high=1)
        self.score = checks.number('score', score, low=0, high=1)

    def check(self, student: Seen, teacher: Seen) -> None:
        """As the base class says."""
        for whose, each in (('student', student), ('teacher', teacher)):
            if each.head is None:
                raise _no_head(type(self), whose)
        _check_features(self, student, teacher)

    def __call__(self, student: Seen, teacher: Seen) -> dict[str, Tensor]:
        """As the base class says."""
        boxes = [
            torch.cat(both)
            for both in zip(
                *(
                    each.proposals(self.score, _OVERLAP)
                    for each in (student, teacher)
                )
            )
        ]
        losses = []
        for s, t in _feature_pairs(student, teacher):
            if not any(map(len, boxes)):
                losses.append(0 * s.sum())
                continue
            # Both axes have one scale but for rounding.
            scale = t.shape[-1] / student.shape[1]
            s, t = (
                roi_align(x, boxes, 7, spatial_scale=scale, aligned=True)
                for x in (s, t)
            )
            with torch.no_grad():
                mapped = adapted(s, t)
                spread = _variance(torch.stack([mapped, t]), (0, 3, 4))
                apart = ((mapped - t).square() / spread).mean((1, 2, 3))
                count = max(1, round(self.keep * len(apart)))
                most = apart.topk(count).indices
            s, t = s[most], t[most]
            spread = _variance(t, (0, 2, 3))
            losses.append(((adapted(s, t) - t).square() / spread).mean())
        return {'regions': torch.stack(losses).mean()}


def _variance(x: Tensor, over: tuple[int, ...]) -> Tensor:
    spread = x.var(over, unbiased=False)[..., None, None]
    return spread + _EPS * spread.mean() + 1e-12


def _check_features(loss: DistillLoss, student: Seen, teacher: Seen) -> None:
    ours, theirs = (
        [(len(x), *x.shape[2:]) for x in seen.features]
        for seen in (student, teacher)
    )
    if ours != theirs:
        raise TeacherError(
            f"{type(loss).__name__}: the student's features are {ours} "
            f"(images, height, width), the teacher's {theirs}: levels and "
            'strides must be the same'
        )


def _feature_pairs(
    student: Seen, teacher: Seen
) -> list[tuple[Tensor, Tensor]]:
    return [
        (_exact(s), _exact(t))
        for s, t in zip(student.features, teacher.features)
    ]


def adapted(student: Tensor, teacher: Tensor) -> Tensor:
    """Map a student's channels to its teacher's, where their number differs.

    The map is linear, the same at all positions (a 1×1 convolution): the
    one with the least squares on this very batch, so there is nothing to
    train or to keep. As it is the best one, a squared difference has the
    same gradient whether the map counts as constant or not; it does.

    Args:
        student: (N, C, H, W).
        teacher: (N, D, H, W).

    Returns:
        (N, D, H, W); ``student`` itself where D is C.
    """
    if student.shape[1] == teacher.shape[1]:
        return student
    with torch.no_grad():
        ours, theirs = (
            torch.cat([x, torch.ones_like(x[:, :1])], 1)
            .movedim(1, -1)
            .flatten(0, -2)
            .double()
            for x in (student, teacher)
        )
        power = ours.T @ ours
        ridge = 1e-4 * power.diagonal().mean() + 1e-12
        power.diagonal().add_(ridge)
        best = torch.linalg.solve(power, ours.T @ theirs[:, :-1])
        best = best.to(student.dtype)
    weight = best[:-1].T[:, :, None, None]
    return F.conv2d(student, weight, best[-1])
