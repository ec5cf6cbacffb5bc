"""How long jobs take, by what is known: what is declared, what was measured, how far a job has come. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor

from loft_jax.study.fields import CHECKS, Retraining, RetrainStep, TrainStep
from loft_jax.study.jobs import Job

# Even a job that is nearly finished takes this share of its time: it starts, and compiles, again.
_RESTART = 0.15


@dataclass(frozen=True)
class Measured:
    """What was measured of a job.

    Attributes:
      seconds: of all its attempts.
      share: of its work that is done, in [0, 1].
    """

    seconds: float
    share: float


@dataclass(frozen=True)
class Times:
    """Estimates of the seconds that jobs take.

    Attributes:
      jobs: all jobs of the study.
      measured: name of a job -> what was measured of it.
      retraining: the lengths of retrainings, as the study says.
      rounds: the number of rounds of retrainings that was chosen; None if none has been.
    """

    jobs: Sequence[Job]
    measured: Mapping[str, Measured]
    retraining: Retraining
    rounds: int | None = None

    @property
    def factor(self) -> float:
        """How much longer trainings take here than is declared, by those that are done; 1 before any is."""
        done = [job for job in self._done if isinstance(job.step, TrainStep | RetrainStep)]
        declared = sum(self.declared(job) for job in done)
        return sum(self.measured[job.name].seconds for job in done) / declared if declared else 1.0

    @property
    def _done(self) -> list[Job]:
        return [job for job in self.jobs if job.name in self.measured and self.measured[job.name].share >= 1]

    def declared(self, job: Job, rounds: int | None = None) -> float:
        """Return the seconds that the step declares, for retrainings of so many rounds, or of the chosen number."""
        rounds = rounds or self.rounds
        if not isinstance(job.step, RetrainStep) or rounds is None or self.retraining.rounds is None:
            return job.seconds
        start = min(job.step.start_seconds, job.seconds)
        return start + (job.seconds - start) * rounds / self.retraining.rounds

    def left(self, job: Job) -> float:
        """Estimate the seconds that a job takes from now on."""
        measured = self.measured.get(job.name)
        alike = [other for other in self._done if (other.step_name, other.setting) == (job.step_name, job.setting)]
        if measured is not None and 0.05 < measured.share < 1:
            whole = measured.seconds / measured.share
        elif alike:
            whole = max(self.measured[other.name].seconds for other in alike)
        else:
            # Tests and the bench say nothing of trainings, and trainings nothing of them.
            whole = self.declared(job) * (1.0 if job.kind in CHECKS else self.factor)
        share = 0.0 if measured is None else measured.share
        return whole * max(1 - share, _RESTART)

    def choose_rounds(self, job: Job, seconds_left: float) -> int | None:
        """Choose the number of rounds of all retrainings, by what the first run's retrainings can take.

        Args:
          job: a retraining of the first run that has any.
          seconds_left: what is left for all of that run's retrainings together.

        Returns:
          None if the study does not let it be chosen.
        """
        most, least = self.retraining.rounds, self.retraining.least_rounds
        if most is None or least is None:
            return None
        together = [other for other in self.jobs if other.run == job.run and isinstance(other.step, RetrainStep)]
        whole = self.factor * sum(self.declared(other, most) for other in together)
        start = self.factor * sum(
            min(other.step.start_seconds, other.seconds) for other in together if isinstance(other.step, RetrainStep)
        )
        if whole <= seconds_left:
            return most
        share = (seconds_left - start) / (whole - start) if whole > start else 0.0
        return max(least, min(most, floor(most * share)))


def fits(times: Times, job: Job, seconds_left: float) -> bool:
    """Whether a job may be begun: all of it fits, or as much as is worth beginning."""
    least = getattr(job.step, "least_seconds", None)
    needed = times.left(job)
    return min(needed, least) <= seconds_left if least is not None else needed <= seconds_left


def waiting_for(job: Job, done: Iterable[str]) -> list[str]:
    """Return the names of the jobs that must be done before this one and are not."""
    done = set(done)
    return [name for name in job.needs if name not in done]
