"""A method's runs, and the choice of its learning rate."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surge_det.cli.common import read_config
from surge_det.engine.apply_method import apply_method
from surge_det.paired import paired_differences

from .runs import (
    Evaluation,
    Run,
    Task,
    TrainingResult,
    describe,
    make_run,
    say,
)
from .split import choose_split, lr_split_config


@dataclass(eq=False)
class Candidate:
    """A method (or config) with its runs.

    ``runs[i][k]`` is that of rate i and seed k. Where there are several
    rates, ``evaluations[i]`` is that of ``runs[i][0]`` on the split that
    chooses, and ``chosen`` is None until all of them have ended; a fixed rate
    is chosen from the start. ``failure`` says why none could be chosen.
    """

    name: str
    runs: list[list[Run]]
    evaluations: list[Evaluation]
    chosen: int | None = None
    failure: str | None = None

    @property
    def compared(self) -> list[Run]:
        """The runs with the chosen rate, one for each seed."""
        return [] if self.chosen is None else self.runs[self.chosen]

    @property
    def results(self) -> Mapping[int, TrainingResult]:
        """The results that are compared, by seed."""
        return {run.seed: run.result for run in self.compared if run.result}

    @property
    def trials(self) -> list[Run]:
        """The runs of the first seed, one for each rate."""
        return [runs[0] for runs in self.runs]

    @property
    def at_edge(self) -> bool:
        """Whether the chosen rate is the least or largest evaluated one."""
        rates = [e.run.lr for e in self.evaluations if e.result]
        return bool(self.compared and rates) and (
            self.compared[0].lr in (min(rates), max(rates))
        )

    def differences(self, baseline: Candidate) -> list[float]:
        """MAP minus the baseline's, for each seed that both have."""
        scores, others = (
            {seed: result.mAP for seed, result in each.results.items()}
            for each in (self, baseline)
        )
        return paired_differences(scores, others)

    def ready(self) -> list[tuple[int, Task]]:
        """All that could start now or has, each with the place of its seed.

        Evaluations come before all trainings: more depends on them.
        """
        if self.failure:
            return []
        trainings = enumerate(self.compared)
        if self.chosen is None:
            trainings = ((0, run) for run in self.trials)
        evaluations = [(-1, e) for e in self.evaluations if e.run.result]
        return [*evaluations, *trainings]

    def expected_tasks(self) -> list[Task]:
        """All that was or will be done, as far as that is known.

        Until the rate is chosen, the later seeds of the first one stand for
        those of the chosen one.
        """
        tasks = [*self.trials] if self.evaluations else []
        tasks += [e for e in self.evaluations if not e.run.failure]
        if self.failure:
            return tasks
        later = self.compared or self.runs[0]
        return tasks + (later[1:] if self.evaluations else later)

    def load(self) -> None:
        """Take over what earlier calls have finished.

        Raises:
            FileNotFoundError: If a finished run can no longer be evaluated.
        """
        _load(self.trials if self.evaluations else self.compared)
        trained = [e for e in self.evaluations if e.run.result]
        _load(trained)
        for evaluation in trained:
            if not evaluation.result:
                evaluation.run.checkpoint()

    def choose(self) -> None:
        """Choose the rate if all are evaluated and none is chosen yet.

        It is the one with the best mAP, of equal ones the smallest.
        """
        failed = [e.failed for e in self.evaluations if e.failed]
        finished = [e for e in self.evaluations if e.result]
        ended = len(failed) + len(finished) == len(self.evaluations)
        if self.chosen is not None or self.failure or not ended:
            return
        for evaluation in self.evaluations:
            if evaluation.failed:
                say(
                    f'warning: {self.name}: lr {evaluation.run.lr:g} is left '
                    f'out, its {evaluation.failed.kind} failed'
                )
        if not finished:
            reasons = '\n'.join(map(describe, failed))
            self.failure = f'no learning rate could be evaluated\n{reasons}'
            say(f'{self.name}: FAILED, no learning rate could be evaluated')
            return
        best = max(finished, key=lambda e: (e.result.mAP, -e.run.lr))
        self.chosen = self.evaluations.index(best)
        say(
            f'{self.name}: lr {best.run.lr:g} is chosen, mAP '
            f'{best.result.mAP:.3f} on {best.split}'
        )
        if self.at_edge:
            say(
                f'warning: {self.name}: lr {best.run.lr:g} is at the edge of '
                'the grid, the best may lie outside; --lr-grid takes more'
            )
        _load(self.compared[1:])


def _load(tasks: Sequence[Task]) -> None:
    for task in tasks:
        if task.load():
            say(f'{describe(task)} (kept)')


def expected_tasks(candidates: Sequence[Candidate]) -> list[Task]:
    """All that was or will be done, as far as that is known."""
    return [task for each in candidates for task in each.expected_tasks()]


def make_candidates(args: argparse.Namespace) -> list[Candidate]:
    """Make the runs of everything that is compared.

    Args:
        args: The command line; rates are chosen with the first of its seeds.

    Raises:
        ValueError: If a config does not admit a method or an option, or
            rates can't be chosen on the split.
    """
    candidates = []
    work_dir = args.work_dir or args.out
    for path in args.configs:
        cfg = read_config(path, args.cfg_options)
        if args.split:
            choose_split(cfg, args.split)
        for method in args.methods or [None]:
            name = method or path.stem
            tuned = bool(args.lr_grid) and name not in args.lr
            own = apply_method(cfg, method) if method else cfg
            runs = [
                [
                    make_run(name, rate, seed, own, work_dir, tuned)
                    for seed in args.seeds
                ]
                for rate in (args.lr_grid if tuned else [args.lr.get(name)])
            ]
            split = args.lr_split
            evaluations = [
                Evaluation(r.folder, lr_split_config(r.cfg, split), r, split)
                for r, *_ in (runs if tuned else [])
            ]
            chosen = None if tuned else 0
            candidates.append(Candidate(name, runs, evaluations, chosen))
    return candidates
