"""Settings of the experiment on Theorem 1, each with the letter that the theorem has for it.

Imports neither JAX nor NumPy, so a typo is reported before either is loaded.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from loft_jax.config import PositiveFloat, Section

MOST_FILTERS = 2**24
MOST_WORKERS = 4096
WIDE = 2048  # filters, above which there are fewer mask seeds
Width = Annotated[int, Field(ge=1, le=MOST_FILTERS)]
Size = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(gt=0, le=1)]
DIGITS_SIDE = 8
# Least and greatest value of each swept quantity, and whether it counts something.
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
        description="inputs: handwritten digits less their mean image, rows as channels and columns as pixels, "
        "labelled 1 if odd and -1 if even; or independent normal numbers, labelled 1 or -1 at random",
    )
    samples: Annotated[int, Field(ge=2, le=1797)] = Field(16, description="n, inputs")
    channels: Size = Field(DIGITS_SIDE, description="d, channels of an input; 8 for digits")
    # At most 64, for the compiled program writes every pixel out.
    pixels: Annotated[int, Field(ge=1, le=64)] = Field(DIGITS_SIDE, description="p, pixels of an input; 8 for digits")
    window: Annotated[int, Field(ge=1, le=64)] = Field(
        3, description="q, pixels of a patch, counted round the edge; at most theory.pixels"
    )
    signs: Literal["pixel", "filter"] = Field(
        "pixel", description="the fixed output weights, 1 or -1: one per filter and pixel, or one per filter"
    )
    kappa: PositiveFloat = Field(0.3, description="kappa, standard deviation of the initial weights")
    filters: Width = Field(512, description="m, filters where something else is swept")
    workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = Field(4, description="S, workers")
    xi: Share = Field(0.5, description="xi, probability that a worker keeps a filter")
    eta: PositiveFloat = Field(0.2, description="eta, step of a worker's gradient descent")
    rounds: Annotated[int, Field(ge=1, le=100_000)] = Field(20, description="T, rounds")
    local_steps: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="steps of a worker in a round")
    scale: Literal["unbiased", "differentiated", "literal"] = Field(
        "unbiased",
        description="where 1/xi stands: in a worker's output, whose mean is then the whole network's; in its gradient "
        "too; or nowhere",
    )
    gd_step: Literal["theta_eta", "eta"] = Field(
        "theta_eta",
        description="step of the gradient descent compared with: eta times the probability that a filter is trained, "
        "or eta",
    )
    delta: Share = Field(0.1, description="delta, the theorem's probability of failure; only the bound knows it")
    draws: Annotated[int, Field(ge=2, le=10_000)] = Field(
        8, description="draws of the initial weights, over which errors are taken"
    )
    mask_seeds: Annotated[int, Field(ge=1, le=100_000)] = Field(
        64, description=f"seeds over which the mean over masks is taken, up to {WIDE} filters"
    )
    wide_mask_seeds: Annotated[int, Field(ge=1, le=100_000)] = Field(16, description=f"the same above {WIDE} filters")
    sweep_filters: str = Field(
        "64,128,256,512,1024,2048,4096,8192,16384", description="m, for masks as the theorem has them"
    )
    sweep_disjoint: str = Field(
        "64,256,1024,4096", description="m, for LoFT as it is trained: filters dealt to the workers in equal groups"
    )
    sweep_workers: str = Field("1,2,4,8,16", description="S, at theory.filters")
    sweep_xi: str = Field("0.125,0.25,0.5,0.75,0.9,1", description="xi, at theory.filters")
    sweep_eta: str = Field("0.025,0.05,0.1,0.2,0.4", description="eta, at theory.filters")

    @field_validator(*SWEPT, mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        numbers = isinstance(value, list | tuple) and all(type(number) in (int, float) for number in value)
        return ",".join(map(str, value)) if numbers else value

    @field_validator(*SWEPT)
    @classmethod
    def _are_numbers(cls, value: str, info: ValidationInfo) -> str:
        assert info.field_name is not None  # Pydantic names it to the validators of fields.
        least, most, kind = SWEPT[info.field_name]
        rule = f"must be {'whole ' if kind is int else ''}numbers from {least} to {most}, as in 1,2,4"
        for text in value.split(","):
            try:
                valid = text.isascii() and "_" not in text and least <= kind(text) <= most
            except ValueError:
                valid = False
            if not valid:
                raise ValueError(f"{rule if len(text) > 40 else f'{text!r} is out of range or no number; {rule}'}")
        if len(set(map(kind, value.split(",")))) < value.count(",") + 1:
            raise ValueError("names a number twice; leave one out")
        return value

    def swept(self, quantity: str) -> tuple[Any, ...]:
        """The numbers in `sweep_QUANTITY`, ascending."""
        kind = SWEPT[f"sweep_{quantity}"][2]
        return tuple(sorted(kind(text) for text in getattr(self, f"sweep_{quantity}").split(",")))

    def seeds_for(self, filters: int) -> int:
        """Mask seeds of a network of so many filters."""
        return self.mask_seeds if filters <= WIDE else self.wide_mask_seeds

    @property
    def most_filters(self) -> int:
        """Filters of the largest network."""
        return max(self.filters, *self.swept("filters"), *self.swept("disjoint"))

    @property
    def bytes_needed(self) -> tuple[int, int]:
        """What a comparison needs at once: bytes whatever its filters, for the kernels, and bytes for each filter.

        The latter are for gradient descent's path and for hidden layers with their gradients.
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

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of everything random")
    theory: Theory = Theory()

    @model_validator(mode="after")
    def _consistent(self) -> "TheoryConfig":
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
