"""Settings of iterative pruning, in one file with those of the trainings. Imports neither JAX nor NumPy."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from loft_jax.config import Config, Section, join_names
from loft_jax.errors import did_you_mean, format_value

CONTROLS = ("random", "reinit", "init")
WHOLE = "none"
_REWIND = re.compile(r"([0-9]{1,10})( ?steps?)?", re.ASCII)
_RATE = "must be a share above 0 and below 1, or none for layers that are left whole; try 0.2"


class Lottery(Section):
    levels: Annotated[int, Field(ge=1, le=1000)] = Field(
        12, description="how often weights are removed; level 0 is the whole network, and each level is a training"
    )
    prune: Literal["weights", "filters"] = Field(
        "weights",
        description="weights: single weights of kernels, which become 0 and stay 0; filters: whole filters of the "
        "filter groups, which makes the network really smaller",
    )
    rates: str = Field(
        "*=0.2",
        description="share of the remaining weights that a level removes from each layer (filters: from each filter "
        "group), as PATTERN=SHARE,... or a mapping of patterns to shares; of several patterns that match a layer the "
        "last one counts, and a layer that none matches, or whose share is none, is left whole",
    )
    scope: Literal["layer", "global"] = Field(
        "layer",
        description="layer: the share is removed from each layer; global: from all layers together for which the same "
        "pattern counts",
    )
    rewind_to: str = Field(
        "0",
        description="round of the whole network's training to whose weights each level goes back, from where it trains "
        "to the end; or the local step, as in '500 steps', if a round ends there",
    )
    controls: str = Field(
        "none",
        description="what is trained beside the ticket at each level: random (as many weights of each layer, drawn at "
        "random), reinit (the ticket's weights, initialised anew), init (as many of each layer, the largest of the "
        "initialisation), several of them separated by commas, or none",
    )

    @field_validator("rates", mode="before")
    @classmethod
    def _rates_joined(cls, value: Any) -> Any:
        """Turn a mapping into text."""
        if isinstance(value, Mapping):
            return ",".join(f"{pattern}={WHOLE if rate is None else rate}" for pattern, rate in value.items())
        return join_names(value)

    @field_validator("rates")
    @classmethod
    def _rates_are_shares(cls, value: str) -> str:
        patterns = []
        for part in value.split(","):
            pattern, equals, rate = part.rpartition("=")
            if not equals or not pattern.strip():
                raise ValueError(f"{format_value(part)} must be PATTERN=SHARE; try *=0.2")
            if _share(rate) is None and rate != WHOLE:
                raise ValueError(f"{format_value(rate)}, the share of {format_value(pattern)}, {_RATE}")
            patterns.append(pattern)
        if len(set(patterns)) < len(patterns):
            raise ValueError("names a pattern twice; name each once")
        return value

    @field_validator("rewind_to", mode="before")
    @classmethod
    def _round_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("rewind_to")
    @classmethod
    def _is_a_round_or_steps(cls, value: str) -> str:
        if not _REWIND.fullmatch(value):
            raise ValueError("must be the number of a round, or of local steps as in '500 steps'; try 0")
        return value

    @field_validator("controls", mode="before")
    @classmethod
    def _controls_joined(cls, value: Any) -> Any:
        return join_names(value)

    @field_validator("controls")
    @classmethod
    def _controls_known(cls, value: str) -> str:
        names = value.split(",")
        for name in names if value != "none" else []:
            if name not in CONTROLS:
                hint = did_you_mean(name, CONTROLS, "try random")
                raise ValueError(f"{format_value(name)} is none of {', '.join(CONTROLS)}, or none alone{hint}")
        if len(set(names)) < len(names):
            raise ValueError("names a control twice; name each once")
        return value

    @property
    def rate_of_pattern(self) -> dict[str, float | None]:
        """Pattern -> share that a level removes, None for layers that are left whole; in the order given."""
        pairs = (part.rpartition("=") for part in self.rates.split(","))
        return {pattern: _share(rate) for pattern, _, rate in pairs}

    @property
    def control_names(self) -> tuple[str, ...]:
        """The controls, in the order given."""
        return () if self.controls == "none" else tuple(self.controls.split(","))


class LotteryConfig(Config):
    """Settings of a training, and of the levels that it is repeated for."""

    lottery: Lottery = Lottery()

    @model_validator(mode="after")
    def _levels_can_be_trained(self) -> "LotteryConfig":
        if self.gpipe.stages is not None:
            raise ValueError(
                f"gpipe.stages={self.gpipe.stages}: a level is trained by LoFT, local SGD or plain SGD; leave "
                "gpipe.stages out"
            )
        if self.distributed.is_enabled:
            raise ValueError("distributed: levels are trained by one process; leave distributed out")
        if self.train.stop_when is not None:
            raise ValueError(
                f"train.stop_when={self.train.stop_when}: all levels are trained for as long; leave it out"
            )
        if not self.data.validation:
            raise ValueError(
                "data.validation=0.0: the step of least validation loss is sought, and no images are held out for it; "
                "give a share or a number of images, try 0.1"
            )
        if self.rewind_round >= self.train.rounds:
            raise ValueError(
                f"lottery.rewind_to={self.lottery.rewind_to}: must be before the end of the training, "
                f"train.rounds={self.train.rounds} ({self.total_steps} local steps); try 0"
            )
        return self

    @property
    def rewind_round(self) -> int:
        """Round to whose weights each level goes back. Raises ValueError if no round ends at the step given."""
        found, length = _REWIND.fullmatch(self.lottery.rewind_to), self.loft.local_steps
        assert found is not None  # The field has been validated.
        number = int(found[1])
        if not found[2]:
            return number
        if number % length:
            raise ValueError(
                f"lottery.rewind_to={self.lottery.rewind_to}: no round ends there, because a round has "
                f"loft.local_steps={length}; try {round(number / length) * length} steps"
            )
        return number // length

    def training(self, seed: int) -> Config:
        """Return the settings of one training, with a seed."""
        return Config.model_validate(self.model_dump(exclude={"lottery"}) | {"seed": seed})


def _share(text: str) -> float | None:
    """Return the share that a text says; None if it says none that can be removed."""
    try:
        share = float(text) if text.isascii() and "_" not in text else 0.0
    except ValueError:
        return None
    return share if 0 < share < 1 else None
