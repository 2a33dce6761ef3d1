"""A method's runs, and the choice of its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .plan import Entry, on_lr_split
from .runs import Evaluation, Run, Task, make_run, told


@dataclass(eq=False)
class Contender:
    """A method (or config) with its runs.

    ``runs[i][k]`` is that of rate i and seed k. Where there are several
    rates, ``evaluations[i]`` is that of ``runs[i][0]`` on the split that
    chooses, and ``chosen`` is None until all of these are through; where the
    rate is fixed there is one, chosen, and no evaluation. ``failure`` says
    why none could be chosen.
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
    def trials(self) -> list[Run]:
        """The runs of the first seed, one for each rate."""
        return [runs[0] for runs in self.runs]

    @property
    def at_edge(self) -> bool:
        """Whether the chosen rate is the least or largest evaluated one."""
        rates = [e.entry.lr for e in self.evaluations if e.finished]
        return bool(self.compared and rates) and (
            self.compared[0].entry.lr in (min(rates), max(rates))
        )

    def ready(self) -> list[tuple[int, Task]]:
        """What could start now or has, each with the place of its seed.

        Evaluations come before all trainings: more depends on them.
        """
        if self.failure:
            return []
        trainings = enumerate(self.compared) if self.compared else []
        if self.chosen is None:
            trainings = ((0, run) for run in self.trials)
        done = [(-1, e) for e in self.evaluations if e.run.finished]
        return [*done, *trainings]

    def outlook(self) -> list[Task]:
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

    def load(self) -> list[Task]:
        """Take over what earlier calls have finished; return that.

        Raises:
            ValueError: If a finished run can no longer be evaluated.
        """
        kept: list[Task] = []
        for run in self.trials if self.evaluations else self.compared:
            if run.load():
                kept.append(run)
        for evaluation in self.evaluations:
            if not evaluation.run.finished:
                continue
            if evaluation.load():
                kept.append(evaluation)
                continue
            try:
                evaluation.run.checkpoint()
            except FileNotFoundError as error:
                raise ValueError(str(error)) from error
        return kept

    def choose(self, say: Callable[[str], None]) -> None:
        """Choose the rate if all are evaluated and none is chosen yet.

        It is the one with the best mAP, of equal ones the smallest.

        Args:
            say: Is told what is chosen, left out or taken over.
        """
        if self.chosen is not None or self.failure:
            return
        if any(e.open and not e.run.failure for e in self.evaluations):
            return
        lost = []
        for evaluation in self.evaluations:
            failed = next(
                (t for t in (evaluation.run, evaluation) if t.failure), None
            )
            if failed:
                lost.append(failed)
                say(
                    f'warning: {self.name}: lr {failed.entry.lr:g} is left '
                    f'out, its {failed.what} failed'
                )
        if len(lost) == len(self.evaluations):
            reasons = '\n'.join(told(task) for task in lost)
            self.failure = f'no learning rate could be evaluated\n{reasons}'
            say(f'{self.name}: FAILED, no learning rate could be evaluated')
            return
        self.chosen = max(
            (i for i, e in enumerate(self.evaluations) if e.finished),
            key=lambda i: (
                self.evaluations[i].score,
                -self.evaluations[i].entry.lr,
            ),
        )
        best = self.evaluations[self.chosen]
        rate = f'{best.entry.lr:g}'
        say(
            f'{self.name}: lr {rate} is chosen, mAP {best.score:.3f} on '
            f'{best.split}'
        )
        if self.at_edge:
            say(
                f'warning: {self.name}: lr {rate} is at the edge of the grid, '
                'the best may lie outside; --lr-grid takes more'
            )
        for run in self.compared[1:]:
            if run.load():
                say(f'{told(run)} (kept)')


def enter(
    entries: Sequence[Entry],
    seeds: Sequence[int],
    work_dir: Path,
    lr_split: str,
) -> list[Contender]:
    """Make the runs of everything that is compared.

    Args:
        entries: As :func:`comparison.plan.plan` gives them.
        seeds: Rates are chosen with the first.
        work_dir: Where the runs have their folders.
        lr_split: The split that rates are chosen on.

    Raises:
        ValueError: If rates can't be chosen on that split.
    """
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.name, []).append(entry)
    contenders = []
    for name, own in grouped.items():
        runs = [[make_run(e, s, work_dir) for s in seeds] for e in own]
        tuned = own[0].from_grid
        evaluations = [
            Evaluation(r[0], lr_split, on_lr_split(r[0].cfg, lr_split))
            for r in (runs if tuned else [])
        ]
        chosen = None if tuned else 0
        contenders.append(Contender(name, runs, evaluations, chosen))
    return contenders
