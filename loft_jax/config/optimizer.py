"""The section "optimizer" of a config, and the rules that hold between its fields."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from loft_jax.config.fields import Count, Fraction, NonNegativeFloat, PositiveFloat, Section, join_names
from loft_jax.errors import format_value

# What each optimizer does not have, and what takes its place.
_SGD_ONLY = {"momentum": "optimizer.beta1"}
_ADAM_ONLY = {"beta1": "optimizer.momentum", "beta2": "no second moment", "epsilon": "no second moment"}


class Optimizer(Section):
    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="update of a local step")
    learning_rate: PositiveFloat = Field(0.1, description="peak learning rate")
    momentum: Fraction = Field(0.9, description="SGD momentum")
    beta1: Fraction = Field(0.9, description="weight of the old first moment in an update of adam and adamw")
    beta2: Fraction = Field(0.999, description="weight of the old second moment in an update of adam and adamw")
    epsilon: PositiveFloat = Field(
        1e-8, description="added by adam and adamw to the root of the second moment, by which they divide"
    )
    weight_decay: NonNegativeFloat = Field(
        5e-4,
        description="L2 penalty, on kernels only: this times the kernel is added to its gradient; under adamw to what "
        "the learning rate multiplies",
    )
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine",
        description="learning rate after warm-up, over the local steps of the whole run; cosine: falls to 0; step: is "
        "multiplied by optimizer.decay at each of optimizer.milestones; constant: does not change",
    )
    milestones: str | None = Field(
        None,
        description="local steps of the run at which the step schedule lowers the learning rate, separated by commas "
        "as in 20000,25000; null: at 1/2 and at 3/4 of the run",
    )
    decay: Fraction = Field(0.1, description="factor on the learning rate at each milestone of the step schedule")
    warmup_steps: Count = Field(0, description="local steps of linear warm-up")
    label_smoothing: Fraction = Field(0.0, description="probability mass spread over all classes")

    @field_validator("milestones", mode="before")
    @classmethod
    def _milestones_joined(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else join_names(value)

    @field_validator("milestones")
    @classmethod
    def _milestones_ascend(cls, value: str | None) -> str | None:
        names = [] if value is None else value.split(",")
        for name in names:
            if not re.fullmatch(r"[1-9][0-9]{0,9}", name):
                raise ValueError(f"{format_value(name)} is no number of a local step, from 1 on; try 20000,25000")
        steps = [int(name) for name in names]
        if steps != sorted(set(steps)):
            raise ValueError(f"local steps must ascend; try {','.join(map(str, sorted(set(steps))))}")
        return value

    @property
    def milestone_steps(self) -> tuple[int, ...]:
        """The numbers of `milestones`; () for null."""
        return () if self.milestones is None else tuple(map(int, self.milestones.split(",")))

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of what the optimizer keeps of every parameter."""
        return ("momentum",) if self.name == "sgd" else ("momentum", "second_moment")

    def check(self, steps: int) -> None:
        """Raise ValueError for a setting that has no effect, in a run of this number of local steps."""
        unused = _ADAM_ONLY if self.name == "sgd" else _SGD_ONLY
        for key, instead in unused.items():
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                raise ValueError(
                    f"optimizer.{key}={value}: has no effect, because optimizer.name={self.name} has {instead}; leave "
                    "it out"
                )
        for key in ("milestones", "decay"):
            value = getattr(self, key)
            if self.schedule != "step" and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"optimizer.{key}={value}: has no effect with optimizer.schedule={self.schedule}; use step, or "
                    "leave it out"
                )
        for step in self.milestone_steps:
            if step <= self.warmup_steps or step >= steps:
                raise ValueError(
                    f"optimizer.milestones={self.milestones}: must lie between the end of warm-up, after local step "
                    f"{self.warmup_steps}, and the end of the run, after {steps} (train.rounds * loft.local_steps); "
                    f"{step} does not"
                )
