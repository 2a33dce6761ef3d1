"""The config key ``distill_cfg``: a detector learns from another one, too.

It stands in the whole model's dict, beside ``binarize_cfg`` or not::

    model = dict(
        distill_cfg=dict(
            teacher_config='float_faster_rcnn_r18_bccd',
            teacher_ckpt='work_dirs/float_faster_rcnn_r18_bccd/epoch_4.pth',
            losses=[dict(type='LogitsDistillLoss')]))

The student stays what it is, with the same names of layers: the teacher is
no part of it, so it is neither in checkpoints nor exported, and nothing but
training needs its files.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from surge_det.compat.registration import DISTILL_CFG as KEY
from surge_det.core import checks
from surge_det.core.binarization import check_binarization, stored_binarization
from surge_det.core.layers import named_surge_layers
from surge_det.datasets.classes import stored_meta
from surge_det.models.preflight import evaluating
from surge_det.shipped import shipped_config
from surge_det.text import shortened

from .losses import DistillLoss, TeacherError
from .seen import Seen, head_of, second_stage, watch

# Pixels of an image that is tried: enough for the levels of an SSD300.
_SIDE = 320
_KEYS = ('teacher_config', 'teacher_ckpt', 'losses')
# What loaders raise on files of another kind.
_UNREADABLE = (AttributeError, EOFError, LookupError, OSError, RuntimeError)
_UNREADABLE += (TypeError, ValueError, UnpicklingError, struct.error)


class Distiller:
    """A frozen teacher and losses between it and its student.

    Args:
        teacher_config: File of the teacher's config, or the name of a shipped
            one.
        teacher_ckpt: File or address of its weights.
        losses: Dicts of losses, by ``type``, each type once.

    Raises:
        ValueError: If a loss is unknown or there twice, or an argument is out
            of range.
    """

    def __init__(
        self,
        teacher_config: str,
        teacher_ckpt: str,
        losses: list[Mapping[str, Any]],
    ) -> None:
        for name, value in (
            ('teacher_config', teacher_config),
            ('teacher_ckpt', teacher_ckpt),
        ):
            if not isinstance(value, (str, Path)):
                checks.refuse(name, value, 'the name of a file')
        self.teacher_config = str(teacher_config)
        self.teacher_ckpt = str(teacher_ckpt)
        if not isinstance(losses, (list, tuple)) or not losses:
            checks.refuse('losses', losses, 'a list of dicts with a type')
        self.losses = [_build_loss(loss) for loss in losses]
        # Of two of a type the log would have one name.
        if len({type(loss) for loss in self.losses}) < len(losses):
            checks.refuse('losses', losses, 'each type once')
        self._teacher: nn.Module | None = None

    def __deepcopy__(self, memo: dict) -> Distiller:
        """Return itself: copies of a student (as for EMA) share a teacher."""
        return self

    @property
    def is_on(self) -> bool:
        """Whether any loss has a weight above 0."""
        return bool(self._on)

    @property
    def needs_classes(self) -> bool:
        """Whether student and teacher must be of the same classes."""
        return any(loss.needs_classes for loss in self._on)

    @property
    def _on(self) -> list[DistillLoss]:
        return [loss for loss in self.losses if loss.weight > 0]

    def teacher_of(self, student: nn.Module) -> nn.Module:
        """Return the teacher, on the student's device; load it first.

        Its ``dataset_meta`` is what its file tells of its classes.

        Raises:
            TeacherError: If config or weights cannot be read, or are not of
                each other, or the teacher wants images that are normalized
                otherwise, or a loss cannot compare the two.
        """
        device = next(student.parameters()).device
        if self._teacher is None:
            # What is drawn here would shift what the student draws.
            with torch.random.fork_rng(devices=[]):
                teacher = self._load(student).to(device)
                self._try(student, teacher)
            self._teacher = teacher
        return self._teacher.to(device)

    def __call__(
        self, student: nn.Module, seen: Seen, inputs: Tensor, samples: list
    ) -> dict[str, Tensor]:
        """Return weighted losses of a batch, by name.

        Args:
            student: In training.
            seen: What it computed of the batch.
            inputs: (N, 3, H, W), preprocessed.
            samples: mmdet's data samples, of N.
        """
        teacher = self.teacher_of(student)
        sizes = [sample.img_shape for sample in samples]
        theirs = self._beside(seen, teacher, inputs, sizes)
        return self._losses(seen, theirs)

    def _beside(
        self, seen: Seen, teacher: nn.Module, inputs: Tensor, sizes: list
    ) -> Seen:
        """Return what the teacher computes of what the student has seen."""
        theirs = self._see(teacher, inputs, seen.rois)
        for each in (seen, theirs):
            each.sizes = sizes
            each.shape = tuple(inputs.shape[-2:])
        return theirs

    def _losses(self, seen: Seen, theirs: Seen) -> dict[str, Tensor]:
        return {
            f'loss_distill_{name}': loss.weight * value
            for loss in self._on
            for name, value in loss(seen, theirs).items()
        }

    @torch.no_grad()
    def _see(
        self, model: nn.Module, inputs: Tensor, rois: Tensor | None
    ) -> Seen:
        with watch(model) as seen:
            features = model.extract_feat(inputs)
            if any(loss.needs_heads for loss in self._on):
                _run_heads(model, features, rois)
        return seen

    def _try(self, student: nn.Module, teacher: nn.Module) -> None:
        """Show both an image, so that what does not fit is said at once."""
        with evaluating(student):
            error = self._unfit(student, teacher)
            if error is None:
                return
            names = (type(model).__name__ for model in (student, teacher))
            others = ' and '.join(
                loss.__name__
                for loss in DistillLoss.__subclasses__()
                if not self._with(loss)._unfit(student, teacher)
            )
            raise TeacherError(
                '{}: a {} cannot learn from the {} of teacher_config={!r}'
                ' by {}. What would do: {}'.format(
                    KEY,
                    *names,
                    self.teacher_config,
                    error,
                    others or 'none of the losses',
                )
            )

    def _with(self, loss: type[DistillLoss]) -> Distiller:
        losses = [{'type': loss.__name__}]
        return Distiller(self.teacher_config, self.teacher_ckpt, losses)

    @torch.no_grad()
    def _unfit(self, student: nn.Module, teacher: nn.Module) -> str | None:
        mean = getattr(student.data_preprocessor, 'mean', None)
        channels = 3 if mean is None else len(mean)
        # Drawn on the CPU, whose random state is kept.
        inputs = torch.randn(1, channels, _SIDE, _SIDE)
        inputs = inputs.to(next(student.parameters()))
        rois = inputs.new_tensor([[0, 0, 0, _SIDE / 2, _SIDE / 2]])
        try:
            student.extract_feat(inputs)
        except Exception:
            # Its images are of another kind: the first step will tell.
            return None
        try:
            seen = self._see(student, inputs, rois)
            theirs = self._beside(seen, teacher, inputs, [(_SIDE, _SIDE)])
            for loss in self._on:
                loss.check(seen, theirs)
            if any(loss.needs_heads for loss in self._on):
                _check_mode(seen)
            self._losses(seen, theirs)
        except TeacherError as error:
            return str(error)
        except Exception as error:
            # Heads that want more than features or RoIs fail in any way.
            names = ' and '.join(type(loss).__name__ for loss in self._on)
            return f'{names}: {type(error).__name__}: {error}'
        return None

    def _load(self, student: nn.Module) -> nn.Module:
        where = f'{KEY}: teacher_config={self.teacher_config!r}'
        path = Path(self.teacher_config)
        try:
            path = path if path.is_file() else shipped_config(str(path))
            model = MODELS.build(Config.fromfile(path).model)
        except Exception as error:
            # A config is a program, and may fail in any way.
            raise TeacherError(
                f'{where}: {type(error).__name__}: {error}'
            ) from error
        for _, layer in named_surge_layers(model):
            layer.strip()
        try:
            checkpoint = load_checkpoint(
                model, self.teacher_ckpt, 'cpu', strict=True, logger='silent'
            )
        except _UNREADABLE as error:
            raise TeacherError(
                f'{KEY}: teacher_ckpt={self.teacher_ckpt!r} has not the '
                f'weights of {self.teacher_config}: {shortened(error)}'
            ) from error
        meta = checkpoint.get('meta') or {}
        trained = stored_binarization(meta)
        if trained is not None:
            try:
                check_binarization(model, trained, self.teacher_ckpt)
            except ValueError as error:
                raise TeacherError(f'{KEY}: teacher_ckpt={error}') from error
        model.dataset_meta = stored_meta(meta)
        ours, theirs = (_normalization(m) for m in (student, model))
        if ours != theirs:
            raise TeacherError(
                f'{where}: it was trained with data_preprocessor {theirs}, '
                f'the student gets {ours}: they must be the same'
            )
        return model.eval().requires_grad_(False)


def _build_loss(cfg: Any) -> DistillLoss:
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        checks.refuse('losses', cfg, 'dicts with a type')
    cls = MODELS.get(cfg['type'])
    if not (isinstance(cls, type) and issubclass(cls, DistillLoss)):
        names = [kind.__name__ for kind in DistillLoss.__subclasses__()]
        checks.refuse('losses: type', cfg['type'], f'one of {names}')
    try:
        return cls(**{k: v for k, v in cfg.items() if k != 'type'})
    except (TypeError, ValueError) as error:
        raise ValueError(f'{cls.__name__}: {error}') from error


def _normalization(model: nn.Module) -> dict[str, Any]:
    own = model.data_preprocessor
    return {
        name: value.flatten().tolist() if isinstance(value, Tensor) else value
        for name in ('mean', 'std', '_channel_conversion')
        if (value := getattr(own, name, None)) is not None
    }


def _run_heads(
    teacher: nn.Module, features: tuple[Tensor, ...], rois: Tensor | None
) -> None:
    if (head := head_of(teacher)) is not None:
        head(features)
    if rois is not None and (second := second_stage(teacher)) is not None:
        extractor, head = second
        pooled = extractor(features[: extractor.num_inputs], rois)
        if getattr(teacher.roi_head, 'with_shared_head', False):
            pooled = teacher.roi_head.shared_head(pooled)
        head(pooled)


def _check_mode(seen: Seen) -> None:
    """See that a student's head says in training what a teacher's does.

    FCOS with ``norm_on_bbox`` multiplies distances by the stride in
    evaluation alone, VFNet then leaves out a map.

    Args:
        seen: In evaluation.

    Raises:
        TeacherError: If it does not.
    """
    if seen.head is None:
        return
    # The head alone: dropout and norms stay as they are.
    seen.head.training = True
    try:
        emitted = seen.head(seen.features)
    finally:
        seen.head.training = False
    there, here = ([*chain(*maps)] for maps in (emitted, seen.dense))
    if len(there) != len(here) or not all(map(_close, there, here)):
        raise TeacherError(
            f'{type(seen.head).__name__}: in training it emits something '
            'else than in evaluation, as the teacher does'
        )


def _close(x: Tensor, y: Tensor) -> bool:
    # A GPU need not compute twice alike.
    return x.shape == y.shape and torch.allclose(x, y, rtol=1e-2, atol=1e-5)


class _Distilled:
    """Mixed into a detector's class: its losses, and the teacher's."""

    distiller: Distiller

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict:
        """Compute the detector's own losses and what the teacher adds."""
        if not self.distiller.is_on:
            return super().loss(batch_inputs, batch_data_samples)
        with watch(self) as seen:
            losses = super().loss(batch_inputs, batch_data_samples)
        more = self.distiller(self, seen, batch_inputs, batch_data_samples)
        return {**losses, **more}


def build_distilled(
    build: Callable, cfg: dict, *args: Any, **kwargs: Any
) -> nn.Module:
    """Build a detector whose config has the key.

    Args:
        build: What the registry builds without the key with.
        cfg: Of the detector; not changed.
        args: For ``build``.
        kwargs: For ``build``.

    Raises:
        ValueError: If the key's value is not allowed.
    """
    cfg = cfg.copy()
    settings = cfg.pop(KEY)
    model = build(cfg, *args, **kwargs)
    if settings is None:
        return model
    try:
        if not hasattr(model, 'extract_feat'):
            raise ValueError('only a whole detector takes this key')
        if not isinstance(settings, Mapping) or {*settings} != {*_KEYS}:
            raise ValueError(f'None or a dict of {[*_KEYS]} is allowed')
        distiller = Distiller(**settings)
    except ValueError as error:
        name = type(model).__name__
        raise ValueError(f'{name}: {KEY}={settings!r}: {error}') from error
    # The same class but for its loss: the names of layers stay, too.
    cls = type(model)
    model.__class__ = type(cls.__name__, (_Distilled, cls), {})
    model.distiller = distiller
    return model
