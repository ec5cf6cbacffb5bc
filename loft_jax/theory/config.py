"""Settings of the experiment on Theorem 1, each with its letter in the theorem.

Imports neither JAX nor NumPy, so a typo is reported before either is loaded.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from loft_jax.config import PositiveFloat, Section

MOST_FILTERS = 2**24
MOST_WORKERS = 4096
WIDE = 2048  # networks with more filters get fewer mask seeds
Width = Annotated[int, Field(ge=1, le=MOST_FILTERS)]
Size = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(gt=0, le=1)]
DIGITS_SIDE = 8
# Least and greatest value of each swept quantity, and its type.
SWEPT = {
    "sweep_filters": (1, MOST_FILTERS, int),
    "sweep_disjoint": (1, MOST_FILTERS, int),
    "sweep_workers": (1, MOST_WORKERS, int),
    "sweep_xi": (1e-6, 1.0, float),
    "sweep_eta": (1e-9, 1e9, float),
}


class Theory(Section):
    data: Literal["digits", "gaussian"] = Field(
        "digits",
        description="inputs. digits: handwritten digits minus their mean image, with rows as channels and columns as "
        "pixels, labelled 1 if odd and -1 if even; gaussian: independent normal numbers, labelled 1 or -1 at random",
    )
    samples: Annotated[int, Field(ge=2, le=1797)] = Field(16, description="n, number of inputs")
    channels: Size = Field(DIGITS_SIDE, description="d, channels of an input; 8 for digits")
    # At most 64, because the compiled program has separate code for every pixel.
    pixels: Annotated[int, Field(ge=1, le=64)] = Field(DIGITS_SIDE, description="p, pixels of an input; 8 for digits")
    window: Annotated[int, Field(ge=1, le=64)] = Field(
        3, description="q, pixels of a patch, which continues at the opposite edge; at most theory.pixels"
    )
    signs: Literal["pixel", "filter"] = Field(
        "pixel",
        description="the fixed output weights, 1 or -1. pixel: one per filter and pixel; filter: one per filter",
    )
    kappa: PositiveFloat = Field(0.3, description="kappa, standard deviation of the initial weights")
    filters: Width = Field(512, description="m, number of filters in the sweeps of other quantities")
    workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = Field(4, description="S, number of workers")
    xi: Share = Field(0.5, description="xi, probability that a worker keeps a filter")
    eta: PositiveFloat = Field(0.2, description="eta, step of a worker's gradient descent")
    rounds: Annotated[int, Field(ge=1, le=100_000)] = Field(20, description="T, number of rounds")
    local_steps: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="steps of a worker in a round")
    scale: Literal["unbiased", "differentiated", "literal"] = Field(
        "unbiased",
        description="where the factor 1/xi is. unbiased: in a worker's output, whose mean is then the output of the "
        "whole network; differentiated: in its gradient too; literal: nowhere",
    )
    gd_step: Literal["theta_eta", "eta"] = Field(
        "theta_eta",
        description="step of the gradient descent with which LoFT is compared. theta_eta: eta times the probability "
        "that a filter is trained; eta: eta",
    )
    delta: Share = Field(0.1, description="delta, the theorem's probability of failure; used only in the bound")
    draws: Annotated[int, Field(ge=2, le=10_000)] = Field(
        8, description="draws of the initial weights, which give the standard errors"
    )
    mask_seeds: Annotated[int, Field(ge=1, le=100_000)] = Field(
        64, description=f"mask seeds, over which results are averaged, for up to {WIDE} filters"
    )
    wide_mask_seeds: Annotated[int, Field(ge=1, le=100_000)] = Field(
        16, description=f"mask seeds for more than {WIDE} filters"
    )
    sweep_filters: str = Field(
        "64,128,256,512,1024,2048,4096,8192,16384", description="values of m, with the masks of the theorem"
    )
    sweep_disjoint: str = Field(
        "64,256,1024,4096",
        description="values of m, with the masks of LoFT in practice: filters dealt to the workers in equal groups",
    )
    sweep_workers: str = Field("1,2,4,8,16", description="values of S, at theory.filters")
    sweep_xi: str = Field("0.125,0.25,0.5,0.75,0.9,1", description="values of xi, at theory.filters")
    sweep_eta: str = Field("0.025,0.05,0.1,0.2,0.4", description="values of eta, at theory.filters")

    @field_validator(*SWEPT, mode="before")
    @classmethod
    def _join_numbers(cls, value: Any) -> Any:
        numbers = isinstance(value, list | tuple) and all(type(number) in (int, float) for number in value)
        return ",".join(map(str, value)) if numbers else value

    @field_validator(*SWEPT)
    @classmethod
    def _check_numbers(cls, value: str, info: ValidationInfo) -> str:
        assert info.field_name is not None  # Pydantic names it to the validators of fields.
        least, most, kind = SWEPT[info.field_name]
        rule = f"must be {'whole ' if kind is int else ''}numbers from {least} to {most}, as in 1,2,4"
        for text in value.split(","):
            try:
                valid = text.isascii() and "_" not in text and least <= kind(text) <= most
            except ValueError:
                valid = False
            if not valid:
                raise ValueError(f"{rule if len(text) > 40 else f'{text!r} is out of range or not a number; {rule}'}")
        if len(set(map(kind, value.split(",")))) < value.count(",") + 1:
            raise ValueError("names a number twice; leave one out")
        return value

    def swept(self, quantity: str) -> tuple[Any, ...]:
        """Return the numbers in `sweep_QUANTITY`, ascending."""
        kind = SWEPT[f"sweep_{quantity}"][2]
        return tuple(sorted(kind(text) for text in getattr(self, f"sweep_{quantity}").split(",")))

    def seeds_for(self, filters: int) -> int:
        """Return the number of mask seeds for a network with this many filters."""
        return self.mask_seeds if filters <= WIDE else self.wide_mask_seeds

    @property
    def most_filters(self) -> int:
        """Filters of the largest network."""
        return max(self.filters, *self.swept("filters"), *self.swept("disjoint"))

    @property
    def bytes_needed(self) -> tuple[int, int]:
        """Memory of a comparison: fixed bytes, for the kernels, and bytes for each filter.

        The latter are for the path of gradient descent, and for hidden layers with their gradients.
        """
        workers = max(self.workers, self.swept("workers")[-1])
        path = (self.rounds + 5) * self.patch_size
        layers = 4 * self.samples * self.pixels + 4 * self.samples + 3 * workers
        return 8 * 4 * (self.samples * self.pixels) ** 2, 8 * (path + layers)

    @property
    def patch_size(self) -> int:
        """Numbers in a patch."""
        return self.channels * self.window


class TheoryConfig(Section):
    """Settings of one experiment."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="seed of everything random")
    theory: Theory = Theory()

    @model_validator(mode="after")
    def _check_consistency(self) -> "TheoryConfig":
        theory = self.theory
        if theory.data == "digits":
            for key, value in (("channels", theory.channels), ("pixels", theory.pixels)):
                if value != DIGITS_SIDE:
                    raise ValueError(
                        f"theory.{key}={value}: must be {DIGITS_SIDE} for theory.data=digits; leave it out, or use "
                        "theory.data=gaussian"
                    )
        if theory.window > theory.pixels:
            raise ValueError(
                f"theory.window={theory.window}: must be at most theory.pixels={theory.pixels}; try {theory.pixels}"
            )
        least = min(theory.filters, *theory.swept("filters"), *theory.swept("disjoint"))
        for key, most in (("workers", theory.workers), ("sweep_workers", theory.swept("workers")[-1])):
            if most > least:
                raise ValueError(
                    f"theory.{key}={most}: must be at most the {least} filters of the smallest network; try {least}"
                )
        return self
