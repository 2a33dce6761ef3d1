"""Boxes that a dataset leaves out, counted by reason."""

from __future__ import annotations

import logging
from collections import Counter

from mmengine.logging import print_log

from surge_det.text import some


class DroppedBoxes:
    """Counts the boxes that a dataset leaves out while it reads them.

    Args:
        source: The annotation file or list that the messages name.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._files: dict[str, Counter] = {}
        self._lost = 0

    def add(self, reason: str, file: str, lost: bool = True) -> None:
        """Count one box.

        Args:
            reason: Why it is left out, as in '3 without area'.
            file: The image or annotation file that it belongs to.
            lost: False for what is left out on purpose, such as crowd; it
                is told, but does not count against ``allowed``.
        """
        self._files.setdefault(reason, Counter())[file] += 1
        self._lost += lost

    def counts(self) -> dict[str, int]:
        """Return how many boxes are left out, for each reason."""
        return {why: sum(n.values()) for why, n in self._files.items()}

    def check(self, kept: int, allowed: float) -> None:
        """Log what was left out, in one line, or refuse it.

        Args:
            kept: How many boxes the dataset has.
            allowed: Which part of the boxes may be lost, the dataset's
                argument ``max_dropped``; 1 allows that none is left.

        Raises:
            ValueError: If more are lost, or if none is left.
        """
        if not self._files:
            return
        reasons = '; '.join(
            f'{sum(files.values())} {reason} ({some(files)})'
            for reason, files in self._files.items()
        )
        left_out = sum(sum(files.values()) for files in self._files.values())
        message = (
            f'{self.source}: {left_out} of {kept + left_out} boxes are left '
            f'out: {reasons}'
        )
        lost = self._lost / max(kept + self._lost, 1)
        if (kept == 0 and allowed < 1) or lost > allowed:
            raise ValueError(
                f'{message}. '
                + ('None is left' if kept == 0 else f'{lost:.1%} are lost')
                + f'; the dataset setting max_dropped={allowed:g} is the part '
                'that may be'
            )
        level = logging.WARNING if self._lost else logging.INFO
        print_log(message, logger='current', level=level)
