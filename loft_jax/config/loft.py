"""The section "loft" of a config, and the rules that hold between its fields."""

from typing import Any, Literal

from pydantic import Field

from loft_jax.config.fields import Fraction, PositiveFloat, PositiveInt, Section


class Loft(Section):
    workers: PositiveInt = Field(
        4, description="sub-CNNs trained side by side; 1 is plain SGD, and the default if gpipe.stages is set"
    )
    local_steps: PositiveInt = Field(16, description="SGD steps of a worker between two syncs")
    sync: Literal["psum", "exchange"] = Field(
        "psum",
        description="how owned slices are sent at the end of a round; psum: they are summed into the full CNN on every "
        "device; exchange: each goes directly from its owner to its next owner (fewer bytes, and no device holds the "
        "full CNN)",
    )
    partition: Literal["paper", "all", "none"] = Field(
        "paper",
        description="groups to split; paper: those that the model declares; all: every group; none: no group (local "
        "SGD)",
    )
    deal: Literal["random", "ranked"] = Field(
        "random",
        description="how filters are dealt to the workers; random: each as likely to any; ranked: so that every worker "
        "gets as many of large and of small norm (l2)",
    )
    momentum: Literal["carry", "reset"] = Field(
        "carry",
        description="momentum after a sync; carry: it travels with its filters; reset: it starts at zero again",
    )
    rescale: bool = Field(
        False,
        description="multiply a split block's residual branch by the number of workers in local training "
        "(in resnet18 and resnet34 the norm after it cancels most of this)",
    )
    shared_every: PositiveInt = Field(
        1,
        description="rounds between two averages of the shared variables, of which each worker keeps its own until "
        "then; filters are sent in every round. With loft.stagger: turns of every fragment, instead of rounds",
    )
    wire: Literal["float32", "bfloat16", "int8"] = Field(
        "float32",
        description="what numbers are sent as in a sync; int8: each filter with a scale of its own. What the rounding "
        "leaves out stays with its sender, which adds it later; vectors are sent as float32",
    )
    outer: Literal["none", "nesterov"] = Field(
        "none",
        description="what is made of a round's change of the shared parameters; none: they change by it; nesterov: it "
        "is the gradient of an outer step of SGD with Nesterov momentum (DiLoCo)",
    )
    outer_learning_rate: PositiveFloat = Field(0.7, description="learning rate of the outer step")
    outer_momentum: Fraction = Field(0.9, description="Nesterov momentum of the outer step")
    outer_filters: bool = Field(
        False, description="make an outer step of the split filters too; its momentum travels with them"
    )
    stagger: PositiveInt = Field(
        1,
        description="fragments of the network that take turns: each round sends the filters of one of them and "
        "averages its share of the shared variables, so that a sync sends so many times less at once; needs "
        "loft.sync=exchange",
    )

    @property
    def keeps_own(self) -> bool:
        """Whether the shared variables of a worker are its own from a round to the next."""
        return self.shared_every > 1 or self.stagger > 1

    @property
    def messages(self) -> tuple[str, ...]:
        """Names, in tables, of what the run sends otherwise than by default."""
        named = {
            self.wire: self.wire != "float32",
            f"shared every {self.shared_every}": self.shared_every > 1,
            f"{self.outer} of {'all' if self.outer_filters else 'shared'}": self.outer != "none",
            f"{self.stagger} fragments": self.stagger > 1,
        }
        return tuple(name for name, differs in named.items() if differs)

    def check(self, rounds: int, stages: int | None) -> None:
        """Raise ValueError for a setting that has no effect, in a run of so many rounds and stages of a pipeline."""
        for key in ("outer_learning_rate", "outer_momentum", "outer_filters"):
            value = getattr(self, key)
            if self.outer == "none" and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"loft.{key}={value}: has no effect with loft.outer=none; use loft.outer=nesterov, or leave it out"
                )
        for key, default in ONE_WORKER.items():
            value = getattr(self, key)
            if self.workers == 1 and key not in _OF_ONE_WORKER and value != default:
                sender = "a pipeline" if stages else "loft.workers=1"
                raise ValueError(f"loft.{key}={value}: {sender} has no sync, in which something is sent; leave it out")
        if self.stagger > 1 and self.sync == "psum":
            raise ValueError(
                f"loft.stagger={self.stagger}: under loft.sync=psum every device holds all filters after each round; "
                "use loft.sync=exchange"
            )
        for key, does in (("deal", "dealt"), ("outer_filters", "stepped")):
            value = getattr(self, key)
            if self.partition == "none" and value != ONE_WORKER[key]:
                raise ValueError(
                    f"loft.{key}={value}: with loft.partition=none no filters are split, to be {does}; leave it out"
                )
        if self.stagger > rounds:
            raise ValueError(f"loft.stagger={self.stagger}: more fragments than train.rounds={rounds}; try {rounds}")
        if self.deal == "ranked" and self.sync == "exchange":
            raise ValueError(
                "loft.deal=ranked: under loft.sync=exchange no device holds all filters, to rank them; use "
                "loft.sync=psum"
            )
        if self.shared_every * self.stagger > rounds:
            turns = f"loft.stagger={self.stagger} rounds, " if self.stagger > 1 else ""
            raise ValueError(
                f"loft.shared_every={self.shared_every}: with {turns}train.rounds={rounds} not all shared variables "
                f"would be averaged even once; try {rounds // self.stagger}"
            )


# What a run has that splits nothing, and sends nothing.
_OF_ONE_WORKER = ("workers", "sync")
ONE_WORKER: dict[str, Any] = {"workers": 1} | {
    name: Loft.model_fields[name].default
    for name in (
        "sync",
        "deal",
        "shared_every",
        "wire",
        "outer",
        "outer_learning_rate",
        "outer_momentum",
        "outer_filters",
        "stagger",
    )
}
