"""The keys of a study's file: one field each, with its type, bounds and meaning. `--help` and checks read this file."""

import textwrap
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from loft_jax.config import Fraction, PositiveFloat, Section

Seed = Annotated[int, Field(ge=0, lt=2**31)]
Rounds = Annotated[int, Field(ge=1, lt=2**31)]

KINDS = ("test", "bench", "train", "tickets", "retrain")
# Kinds of steps that are done once, not for every setting and seed.
CHECKS = ("test", "bench")


class _Keys(Section):
    @field_validator("*", mode="before")
    @classmethod
    def _boolean_is_no_number_in_a_list(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(each, bool) for each in value):
            raise ValueError("a boolean is not valid here")
        return value


class Retraining(Section):
    rounds: Rounds | None = Field(None, description="rounds of every retraining; null: as many as its run has")
    least_rounds: Rounds | None = Field(
        None,
        description="if the budget does not allow retraining.rounds for the tickets of the first run, as many as it "
        "allows, but at least these; the number is chosen once, and holds for all; null: always retraining.rounds",
    )
    settings: dict[str, Any] = Field({}, description="settings of every retraining, as options of retrain")


class Report(Section):
    seconds: PositiveFloat = Field(60.0, description="seconds that are kept at the end for the report")


class StudyFields(_Keys):
    budget: PositiveFloat | None = Field(
        None, description="seconds that all starts together may take; --budget limits one start; null: no limit"
    )
    stop_seconds: PositiveFloat = Field(
        20.0, description="seconds that are kept for a training to save, when it is stopped because time is up"
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field([0], description="seeds of runs")
    common: dict[str, Any] = Field({}, description="settings of all runs, over those of their `config`")
    settings: dict[str, dict[str, Any] | None] = Field(
        {},
        description="name -> settings of a run that differ from the common ones; with `config`, the file or packaged "
        "config that they start from",
    )
    retraining: Retraining = Retraining()
    steps: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name -> what is done, see below: for a setting and a seed, or once (test, bench)"
    )
    order: Annotated[list[Any], Field(min_length=1)] | None = Field(
        None,
        description="what is done first, in order of worth: names of steps that are done once, and entries with "
        "`settings`, `seeds` and `steps` (each may be left out, for all of them); null: all steps that are done once, "
        "then for each seed and each setting all others",
    )
    report: Report = Report()


class Entry(_Keys):
    settings: list[str] | None = Field(None, description="names of settings; null: all")
    seeds: list[Seed] | None = Field(None, description="seeds of runs; null: those of the study")
    steps: list[str] | None = Field(None, description="names of steps; null: all that belong to a run")


class Step(_Keys):
    kind: Literal["test", "bench", "train", "tickets", "retrain"] = Field(description="the command that does it")
    seconds: PositiveFloat = Field(
        description="about how long it takes; used until the same step has been measured, and corrected by how long "
        "others took that were estimated too"
    )
    limit: PositiveFloat | None = Field(
        None, description="seconds after which it is stopped and counts as failed; null: only the budget stops it"
    )


class PytestStep(Step):
    """`python -m pytest`, on an installed or packed tree."""

    paths: Annotated[list[str], Field(min_length=1)] = Field(["tests/gpu"], description="files or folders of tests")
    marker: str = Field("gpu", min_length=1, description="expression of markers, as of pytest -m")


class BenchStep(Step):
    """`python -m loft_jax.bench`."""

    arguments: list[str] = Field([], description="further options of bench")


class _RunStep(Step):
    seconds_of: dict[str, PositiveFloat] = Field({}, description="setting -> seconds, where they are not `seconds`")


class _ResumableStep(_RunStep):
    least_seconds: PositiveFloat | None = Field(
        None,
        description="begin it if so many seconds are left, although it will be stopped, and resumed by a later start; "
        "null: only if all of it fits",
    )


class TrainStep(_ResumableStep):
    """`python -m loft_jax.train`: a setting with a seed."""


class TicketsStep(_RunStep):
    """`python -m loft_jax.tickets`: the tickets of a run."""

    ratios: Annotated[list[Fraction], Field(min_length=1)] = Field(
        [0.8, 0.5, 0.3], description="shares of the filters removed"
    )
    scope: Literal["group", "global"] = Field("group", description="where a share is removed, as of tickets")
    norm: Literal["l2", "l1"] = Field("l2", description="norm of a filter's kernel, as of tickets")

    @property
    def tickets(self) -> str:
        """Its tickets, for a message: "0.8, 0.5 (group, l2)"."""
        return f"{', '.join(f'{ratio:.12g}' for ratio in self.ratios)} ({self.scope}, {self.norm})"

    def draws(self, other: "TicketsStep") -> bool:
        """Whether its tickets include those of another step."""
        return (self.scope, self.norm) == (other.scope, other.norm) and set(other.ratios) <= set(self.ratios)


class RetrainStep(TicketsStep, _ResumableStep):
    """`python -m loft_jax.retrain`: tickets of a run, of its last snapshot, and their controls."""

    modes: Annotated[list[Literal["rewind", "finetune", "reinit", "random", "init"]], Field(min_length=1)] = Field(
        ["rewind"], description="modes of retrain; random and init are controls"
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = Field(
        None, description="seeds of the retrainings; null: that of the run"
    )
    timed: bool = Field(True, description="whether to time a step of the tickets and of the unpruned network")
    start_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="the part of `seconds` that does not depend on the number of rounds (start, compilation)"
    )


_STEPS = (PytestStep, BenchStep, TrainStep, TicketsStep, RetrainStep)
STEPS: dict[str, type[Step]] = dict(zip(KINDS, _STEPS, strict=True))


def describe_keys() -> str:
    """Describe every key of a study's file, for --help."""
    parts = [("keys of FILE", StudyFields), ("keys of an entry of `order`", Entry)]
    parts += [(f"keys of a step with `kind: {kind}`", STEPS[kind]) for kind in KINDS]
    return "\n\n".join(f"{title}:\n{_describe(model)}" for title, model in parts)


def _describe(model: type[Section], prefix: str = "") -> str:
    lines = []
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            lines.append(_describe(field.annotation, f"{prefix}{key}."))
        elif key != "kind":
            default = "" if field.is_required() else f" (default: {'null' if field.default is None else field.default})"
            text = f"{field.description}{default}"
            lines.append(textwrap.fill(text, 110, initial_indent=f"  {prefix + key:<24} ", subsequent_indent=" " * 27))
    return "\n".join(lines)
