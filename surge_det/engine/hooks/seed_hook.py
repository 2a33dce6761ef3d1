"""Random numbers that depend on the place in the training alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler

# Key of a checkpoint's `meta`: how many batches of the running epoch were
# trained on, and how many the epoch has.
DONE = 'batches_of_epoch'


@HOOKS.register_module()
class SURGESeedHook(Hook):
    """Makes a training that is resumed the one that was never stopped.

    States of random generators are not in a checkpoint, those of data loading
    processes could not be. So Python's, NumPy's and torch's are seeded

    - before each training iteration by seed, rank and iteration, for what
      the model draws, such as the boxes that a RoI head samples;
    - before each sample is loaded by seed, rank, iteration, place in the batch
      and index, for what its pipeline draws, in whatever process.

    So neither the number of data loading processes nor what a model draws
    changes what images look like: methods that are compared see the same.

    A checkpoint from inside an epoch is resumed there: its first batches are
    passed over without being loaded.

    What holds states of its own is not covered: caches in a pipeline, such as
    ``CachedMosaic``, and ``BatchSyncRandomResize``.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._batches: _PlacedBatches | None = None
        self._done = self._length = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """See where in an epoch training goes on; take over the seed."""
        meta = checkpoint.get('meta') or {}
        self._done, self._length = meta.get(DONE, (0, 0))
        if not runner._resume:
            return
        # Where a config names no seed, the sampler has this process' own.
        sampler = runner.train_loop.dataloader.batch_sampler.sampler
        if getattr(sampler, 'seed', None) == runner.seed:
            sampler.seed = meta.get('seed', runner.seed)

    def before_train(self, runner: Runner) -> None:
        """Put the batch sampler in place."""
        loop, loader = runner.train_loop, runner.train_loop.dataloader
        batches = loader.batch_sampler
        if batches is None:
            runner.logger.warning(
                'train_dataloader loads samples one by one, in no batches: '
                'a training that is resumed will differ from a whole one'
            )
            return
        if not isinstance(batches, _PlacedBatches):
            batches = _PlacedBatches(batches)
            # The loader's own attribute refuses changes.
            vars(loader)['batch_sampler'] = batches
        batches.seed, batches.iteration = runner.seed, 0
        self._batches = batches
        if self._done and runner.iter and self._length != len(loader):
            runner.logger.warning(
                f'the checkpoint is from inside an epoch of {self._length} '
                f'batches, which has {len(loader)} here: it begins anew'
            )
            self._done = 0
        if isinstance(loop, IterBasedTrainLoop):
            # It has started on its data already.
            loader._iterator = None
            sampler = batches.sampler
            if isinstance(sampler, InfiniteSampler):
                sampler.indices = sampler._indices_of_rank()
            old = type(loop.dataloader_iterator)
            loop.dataloader_iterator = old(loader)

    def before_train_epoch(self, runner: Runner) -> None:
        """Pass over what was trained on before an interruption."""
        loop = runner.train_loop
        # A loop by iterations passes over its batches itself.
        if isinstance(loop, IterBasedTrainLoop) or self._batches is None:
            return
        skipped = self._done if runner.iter else 0
        self._done = 0
        self._epoch, self._start = runner.epoch, runner.iter - skipped
        self._batches.iteration, self._batches.skip = self._start, skipped
        if skipped:
            run_iter = loop.run_iter
            loop.run_iter = lambda idx, batch: run_iter(idx + skipped, batch)
        # Samplers may draw from them too.
        seed_all('epoch', runner.seed, self._start)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Seed what the model draws from."""
        seed_all('iteration', runner.seed, get_rank(), runner.iter)

    def after_train_epoch(self, runner: Runner) -> None:
        """Count batches as the loop does again."""
        vars(runner.train_loop).pop('run_iter', None)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Write down where in an epoch it is."""
        meta = checkpoint['meta']
        loop = runner.train_loop
        if not isinstance(loop, IterBasedTrainLoop) and self._batches:
            inside = meta['epoch'] == self._epoch
            done = meta['iter'] - self._start if inside else 0
            meta[DONE] = [done, len(loop.dataloader)]


def seed_all(*place: object) -> None:
    """Seed Python, NumPy and torch by a place in the training."""
    digest = hashlib.sha256(repr(place).encode()).digest()
    number = int.from_bytes(digest[:4], 'big')
    random.seed(number)
    np.random.seed(number)
    # torch.manual_seed writes down where it was called from, before there is
    # a GPU in use, which takes longer than all of this.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)


class _PlacedBatches(BatchSampler):
    """A batch sampler whose batches know the iteration that they are for."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.sampler = batches.sampler
        self.batch_size = batches.batch_size
        self.drop_last = batches.drop_last
        self.seed = self.iteration = self.skip = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[_PlacedBatch]:
        for indices in self.batches:
            place = self.seed, get_rank(), self.iteration
            self.iteration += 1
            if self.skip:
                self.skip -= 1
            else:
                yield _PlacedBatch(indices, place)


class _PlacedBatch:
    """Indices of a batch; going over them seeds what each sample draws from.

    Data loading goes over them where it loads them.
    """

    def __init__(self, indices: Iterable[Any], place: tuple) -> None:
        self.indices, self.place = list(indices), place

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Any]:
        # The same index may come twice.
        for number, index in enumerate(self.indices):
            seed_all('sample', *self.place, number, index)
            yield index
