"""Whether data, heads and loaded weights belong together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner, find_latest_checkpoint
from torch import nn

from surge_det.core.binarization import BINARIZED, binarization_of
from surge_det.datasets.classes import (
    ClassesError,
    class_names,
    difference,
    leaves,
    stored_meta,
)
from surge_det.engine.late_schedules import late_schedules
from surge_det.engine.loaded_weights import check_resumed, watch_loading

from .runner_info import plain_model

# Heads of other things than the classes: objectness, stuff, identities.
_OTHER_HEADS = {'rpn_head', 'semantic_head', 'reid'}


@HOOKS.register_module()
class SURGECheckHook(Hook):
    """Sees, before a run, that data, heads and loaded weights fit.

    mmdet checks none of this: with ``num_classes`` too small the last classes
    become background, with lists of another order every box gets another
    name.

    - Datasets of the loops that run, those inside wrappers included, have the
      same ``classes`` in the same order.
    - ``num_classes`` of every head of classes is their number.
    - A checkpoint that the runner loads was trained for them: an error in
      evaluation, a warning in training, where a head may be meant to start
      anew.
    - A checkpoint that is resumed has the model's tensors, and its layers
      binarized the same. Of one that a training starts from, a line lists
      what was not loaded; where hardly anything was, that is an error.
    - A teacher (``distill_cfg``) is loaded; it fits the student.
    - Schedules of the learning rate end with the training: a warning.

    Detectors that read their classes as text are left alone.

    Raises:
        ClassesError: With both lists, or both numbers and the config's key.
        WeightsError: With the file, and how many tensors do not fit.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Compare datasets and heads."""
        check_classes(runner.model, _datasets(runner).items())

    def before_train(self, runner: Runner) -> None:
        """Warn of schedules that are too long; load a teacher."""
        for text in late_schedules(runner):
            runner.logger.warning(text)
        model = plain_model(runner.model)
        distiller = getattr(model, 'distiller', None)
        if distiller and distiller.is_on:
            teacher = distiller.teacher_of(model)
            if distiller.needs_classes:
                _check_teacher(teacher, distiller.teacher_ckpt, runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare with the model, and with what it was trained for."""
        path = str(
            runner._load_from
            or (runner._resume and find_latest_checkpoint(runner.work_dir))
            or 'the checkpoint'
        )
        model = plain_model(runner.model)
        if runner._resume:
            check_resumed(model, checkpoint, path)
        else:
            watch_loading(model, checkpoint, path, runner.logger.warning)
        meta = checkpoint.get('meta') or {}
        trained = class_names(stored_meta(meta))
        datasets = _datasets(runner)
        for mode, dataset in datasets.items():
            names = class_names(getattr(dataset, 'metainfo', None))
            if not (names and trained):
                continue
            text = difference(path, trained, f'{mode}_dataloader', names)
            if text and 'train' not in datasets:
                raise ClassesError(text)
            if text:
                runner.logger.warning(
                    f'{text}. A head whose weights are loaded detects the '
                    "checkpoint's classes until it has learned others"
                )
            return

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Write down what layers binarize; keep one ``dataset_meta``.

        Joined datasets have a list of them, that differ in their palettes,
        say; what reads checkpoints wants a dict.
        """
        meta = checkpoint['meta']
        meta[BINARIZED] = binarization_of(plain_model(runner.model))
        if isinstance(meta.get('dataset_meta'), list):
            meta['dataset_meta'] = meta['dataset_meta'][0]


def check_classes(
    model: nn.Module, datasets: Iterable[tuple[str, Any]]
) -> None:
    """See that datasets agree, and the heads of a detector with them.

    Args:
        model: A detector, wrapped or not. One that reads its classes as text
            is left alone.
        datasets: Modes (train, val, test) and built datasets.

    Raises:
        ClassesError: If not. Datasets that tell no classes are left out.
    """
    if hasattr(plain_model(model), 'language_model'):
        return
    known = [
        (_name(mode, leaf), leaf.metainfo, names)
        for mode, dataset in datasets
        for leaf in leaves(dataset)
        if (names := class_names(getattr(leaf, 'metainfo', None)))
    ]
    if not known:
        return
    first, meta, names = known[0]
    for other, _, others in known[1:]:
        text = difference(first, names, other, others)
        if text:
            raise ClassesError(
                f'{text}. A label is a place in this list: give all datasets '
                'the same metainfo.classes'
            )
    # In panoptic data some heads are of the things only.
    allowed = {len(names), len(meta.get('thing_classes') or names)}
    wrong = {
        key: number
        for key, number in numbers_of_classes(model).items()
        if number not in allowed
    }
    if wrong:
        found = ', '.join(f'{key}={number}' for key, number in wrong.items())
        raise ClassesError(
            f'{found}, but {first} has {len(names)} classes, {names}: '
            f'num_classes must be {len(names)}'
        )


def _check_teacher(teacher: nn.Module, path: str, runner: Runner) -> None:
    trained = class_names(teacher.dataset_meta)
    dataset = _datasets(runner).get('train')
    names = class_names(getattr(dataset, 'metainfo', None))
    if trained and names:
        text = difference(path, trained, 'train_dataloader', names)
        if text:
            raise ClassesError(
                f'distill_cfg: the teacher is of other classes: {text}'
            )


def _datasets(runner: Runner) -> dict[str, Any]:
    # Loops that do not run are still configs.
    found = {}
    for mode in ('train', 'val', 'test'):
        loop = getattr(runner, f'_{mode}_loop', None)
        if isinstance(loop, BaseLoop):
            found[mode] = loop.dataloader.dataset
    return found


def _name(mode: str, dataset: Any) -> str:
    file = getattr(dataset, 'ann_file', '')
    return f'{mode}_dataloader' + f' ({file})' * bool(file)


def numbers_of_classes(model: nn.Module) -> dict[str, int]:
    """``num_classes`` of the heads of classes, by its key in a config."""
    model = plain_model(model)
    heads = {}
    for name, module in model.named_modules():
        # The number of a head in a cascade stands last.
        if not name.rstrip('.0123456789').endswith('head'):
            continue
        # mmdet's RPN alone calls its head bbox_head too.
        others = (
            _OTHER_HEADS & set(name.split('.'))
            or 'RPN' in type(module).__name__
        )
        number = getattr(module, 'num_classes', None)
        if isinstance(number, int) and not others:
            heads[f'model.{name}.num_classes'] = number
    if not heads and isinstance(getattr(model, 'num_classes', None), int):
        # A classifier.
        heads['model.num_classes'] = model.num_classes
    return heads
