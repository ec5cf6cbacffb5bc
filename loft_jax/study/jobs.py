"""The jobs of a study, from its settings, seeds, steps and order: what each does, what it needs, in order of worth."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loft_jax.config import Config, flatten, validate_settings
from loft_jax.errors import UserError, did_you_mean, format_literal, format_value
from loft_jax.study.fields import CHECKS, KINDS, Entry, RetrainStep, Step, TicketsStep, TrainStep
from loft_jax.study.study import Study

# Keys of a step that say when and how a job is done, not what it is.
_TIMES = {"seconds", "seconds_of", "limit", "least_seconds", "start_seconds", "timed"}


@dataclass(frozen=True)
class Job:
    """One call of a command.

    Attributes:
      name: unique in its study, and a directory's name: a step's, or SETTING-seedK-STEP.
      step_name, step: the step that it does.
      setting, seed, config: of its run; None if it belongs to none.
      needs: names of the jobs that must be done before it.
      chain: number of the run, or of the job without one, in order of worth; a chain is the work of one task.
      seconds: about how long it takes, as the step says.
      retraining: dotted key -> value of what the study says of all retrainings; {} for another job.
    """

    name: str
    step_name: str
    step: Step
    setting: str | None
    seed: int | None
    config: Config | None
    needs: tuple[str, ...]
    chain: int
    seconds: float
    retraining: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Kind of its step."""
        return self.step.kind

    @property
    def run(self) -> tuple[str, int] | None:
        """Setting and seed of its run."""
        return None if self.setting is None or self.seed is None else (self.setting, self.seed)

    def identity(self) -> dict[str, Any]:
        """Dotted key -> value of everything that says what the job computes; a done job with another one is refused."""
        step = {key: value for key, value in self.step.model_dump().items() if key not in _TIMES}
        step |= self.retraining
        if self.config is None or not isinstance(self.step, TrainStep):
            return step
        settings = {key: v for key, v in flatten(self.config).items() if key not in self.config.resumable_keys()}
        return step | settings | {"seed": self.seed}

    def defaults(self) -> dict[str, Any]:
        """Return dotted key -> default of what `identity` may name."""
        fields = type(self.step).model_fields.items()
        step = {key: field.get_default(call_default_factory=True) for key, field in fields if not field.is_required()}
        return step | flatten(Config())


def expand(study: Study) -> tuple[Job, ...]:
    """List the jobs of a study, in order of worth.

    Raises:
      UserError: an entry of the order names what is not there, needs what does not come before it, or repeats a job.
    """
    jobs: dict[str, Job] = {}
    places: dict[str, int] = {}
    chains: dict[Any, int] = {}
    for number, entry in enumerate(_entries(study), 1):
        for job in _jobs_of(study, entry, number, jobs, chains):
            if job.name in jobs:
                raise UserError(
                    f"{study.source}: order: the job {job.name} is there twice, in entries {places[job.name]} and "
                    f"{number}; leave one of them out"
                )
            jobs[job.name], places[job.name] = job, number
    return tuple(jobs.values())


def _entries(study: Study) -> Sequence[Any]:
    if study.fields.order is not None:
        return study.fields.order
    checks = [name for name, step in study.steps.items() if step.kind in CHECKS]
    return [*checks, *([{}] if len(checks) < len(study.steps) else [])]


def _jobs_of(study: Study, entry: Any, number: int, before: Mapping[str, Job], chains: dict[Any, int]) -> Iterator[Job]:
    label = f"{study.source}: order, entry {number}"
    checks = [name for name, step in study.steps.items() if step.kind in CHECKS]
    if isinstance(entry, str):
        _check_name(label, "step that is done once", entry, checks)
        step = study.steps[entry]
        yield Job(entry, entry, step, None, None, None, (), chains.setdefault(entry, len(chains)), step.seconds)
        return
    if not isinstance(entry, dict):
        raise UserError(
            f"{label}: {format_literal(entry)}: must be the name of a step that is done once "
            f"({', '.join(checks) or 'there is none'}), or have settings, seeds and steps"
        )
    given = validate_settings(entry, label, Entry)
    of_runs = [name for name in study.steps if name not in checks]
    settings = list(study.configs) if given.settings is None else given.settings
    steps = of_runs if given.steps is None else given.steps
    # What needs the other comes after it, in whatever order a file has them.
    steps = sorted(steps, key=lambda name: KINDS.index(study.steps[name].kind) if name in study.steps else 0)
    for what, names, known in (("setting", settings, study.configs), ("step of a run", steps, of_runs)):
        for name in names:
            _check_name(label, what, name, known)
    new: dict[str, Job] = {}
    for seed in study.fields.seeds if given.seeds is None else given.seeds:
        for setting in settings:
            for name in steps:
                chain = chains.setdefault((setting, seed), len(chains))
                job = _job_of_run(study, name, setting, seed, chain, {**before, **new}, label)
                if job.name not in new:
                    new[job.name] = job
                yield job


def _job_of_run(
    study: Study, name: str, setting: str, seed: int, chain: int, before: Mapping[str, Job], label: str
) -> Job:
    step = study.steps[name]
    here = [job for job in before.values() if job.run == (setting, seed)]
    where = f"{label}: {name} of {setting}, seed {seed}"
    needs: list[str] = []
    if isinstance(step, TicketsStep):
        trained = [job.name for job in here if isinstance(job.step, TrainStep)]
        if not trained:
            raise UserError(f"{where}: needs its run, which is not trained before it; add a step of kind train")
        needs += trained
    if isinstance(step, RetrainStep):
        needs.append(_tickets_for(step, here, where))
    return Job(
        name=f"{setting}-seed{seed}-{name}",
        step_name=name,
        step=step,
        setting=setting,
        seed=seed,
        config=study.configs[setting].model_copy(update={"seed": seed}),
        needs=tuple(needs),
        chain=chain,
        seconds=getattr(step, "seconds_of", {}).get(setting, step.seconds),
        retraining=study.retraining if isinstance(step, RetrainStep) else {},
    )


def _tickets_for(step: RetrainStep, here: Sequence[Job], where: str) -> str:
    """Return the name of the job that draws the tickets that a step retrains."""
    searches = {
        job.name: job.step
        for job in here
        if isinstance(job.step, TicketsStep) and not isinstance(job.step, RetrainStep)
    }
    for name, drawn in searches.items():
        if drawn.draws(step):
            return name
    there = "; ".join(f"{name} draws {drawn.tickets}" for name, drawn in searches.items())
    raise UserError(
        f"{where}: needs tickets of {step.tickets}, which are not drawn before it{f' ({there})' if there else ''}; add "
        "them to a step of kind tickets, and that to the entry"
    )


def _check_name(label: str, what: str, name: str, known: Any) -> None:
    if name not in known:
        hint = did_you_mean(name, known, f"there are {', '.join(known)}" if known else "there is none")
        raise UserError(f"{label}: {format_value(name)} is no {what}{hint}")


def task_of(jobs: Sequence[Job], number: int, count: int) -> list[Job]:
    """Return the jobs of one of several tasks: whole chains, so that no task waits for another."""
    return [job for job in jobs if job.chain % count == number]
