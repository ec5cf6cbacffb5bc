"""The section "model" of a config: the networks by name, users' own, and their options."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from loft_jax.config.fields import Section
from loft_jax.config.strict_yaml import parse_yaml
from loft_jax.errors import did_you_mean, format_literal, format_value, path_problem

# Those in the first line declare their filter groups; those of the others are found by tracing.
MODELS = (
    *("preresnet18", "preresnet20", "preresnet34", "resnet18", "resnet34"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "resnet20", "resnet56", "resnet50", "resnet101", "wideresnet28_10"),
    *("mobilenetv2", "densenet121", "mlp", "lenet300", "conv2", "conv4", "conv6"),
)
_PERCEPTRONS = ("mlp", "lenet300")
# Options of networks of the package in `model.options`: name -> option -> its values.
FAMILY_OPTIONS: dict[str, dict[str, Sequence[Any]]] = {
    "mlp": {"hidden_layers": range(1, 33), "norm": ("running", "batch"), "head_norm": (False, True)},
}


class Model(Section):
    name: str = Field(
        "preresnet20",
        description=f"architecture: {', '.join(MODELS)}; or a network of your own, as package.module:callable or "
        "path/to/file.py:callable",
    )
    options: dict[str, Any] = Field(
        {},
        description="keyword arguments of a network of your own; on the command line as '{depth: 3, wide: true}'. "
        "mlp has hidden_layers (2), norm: running (statistics that are estimated again before an evaluation) or batch "
        "(those of the batch, in evaluation too), and head_norm: true (a norm in place of the head's bias)",
    )
    weights: str | None = Field(
        None,
        description="file of weights to start from, with the names that Flax gives: .safetensors, .npz, .msgpack, or "
        "an Orbax directory; null: initialised at random",
    )
    width: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        None, description="channels of the first stage; null: the published width (64; preresnet20: 16)"
    )
    stem: Literal["cifar", "imagenet"] = Field("cifar", description="3x3, or 7x7 stride 2 with max-pooling")

    @field_validator("name")
    @classmethod
    def _known_or_own(cls, name: str) -> str:
        where, colon, attribute = name.rpartition(":")
        if not colon:
            if name not in MODELS:
                near = did_you_mean(name, MODELS)
                raise ValueError(f"must be one of {', '.join(MODELS)}, or package.module:callable{near}")
        elif not attribute.isidentifier():
            raise ValueError(f"{format_value(attribute)} after the colon must be the name of a callable")
        elif where.endswith(".py"):
            if problem := path_problem(where):
                raise ValueError(f"the path {problem}")
        elif not all(part.isidentifier() for part in where.split(".")):
            raise ValueError(f"{format_value(where)} before the colon must be a module, or a file that ends in .py")
        return name

    @field_validator("weights")
    @classmethod
    def _is_a_path(cls, value: str | None) -> str | None:
        if value is not None and (problem := path_problem(value)):
            raise ValueError(f"{problem}; use the name of a file of weights")
        return value

    @field_validator("options", mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        """Read options that come as text."""
        if isinstance(value, str):
            try:
                value = parse_yaml(value)
            except ValueError as error:
                raise ValueError(f"must be a mapping of names to values, as '{{depth: 3}}' ({error})") from None
        if not isinstance(value, dict) or not all(isinstance(key, str) and key.isidentifier() for key in value):
            raise ValueError("must be a mapping of names to values, as '{depth: 3}'")
        for name, option in value.items():
            if not _is_plain(option):
                shown = format_literal(option)
                raise ValueError(f"{name} is {shown}, a {type(option).__name__}; put it in quotes, or give a number")
        return value

    def check_options(self) -> None:
        """Raise ValueError unless a network of the package has these options, and they these values."""
        if self.own:
            return
        known = FAMILY_OPTIONS.get(self.name, {})
        label = f"model.options={format_literal(self.options)}: {self.name}"
        if not known and self.options:
            raise ValueError(
                f"{label} takes none; only {', '.join(FAMILY_OPTIONS)} and networks of your own "
                "(model.name=module:callable) do"
            )
        hint = ", ".join(known)
        for option, value in self.options.items():
            if option not in known:
                raise ValueError(f"{label} has no option {option}{did_you_mean(option, known, f'it has {hint}')}")
            values = known[option]
            # Of equal numbers and booleans one is no value of the option.
            if not any(type(value) is type(allowed) and value == allowed for allowed in values):
                texts = [format_literal(allowed) for allowed in values]
                texts = texts if len(texts) < 4 else [f"{texts[0]} to {texts[-1]}"]
                raise ValueError(f"{label} has {option}={format_literal(value)}, which must be {' or '.join(texts)}")

    @property
    def own(self) -> bool:
        """Whether the network is the user's."""
        return ":" in self.name

    @property
    def is_perceptron(self) -> bool:
        """Whether the network is a perceptron of the package."""
        return self.name in _PERCEPTRONS

    @property
    def norms_by_the_batch(self) -> bool:
        """Whether the network's norms use the statistics of the batch in evaluation too."""
        return not self.own and self.options.get("norm") == "batch"


def options_hint(key: str) -> str:
    """Return the end of a message about an unknown key that is an option of a network; "" if it is none."""
    section, _, option = key.rpartition(".")
    of = [name for name, options in FAMILY_OPTIONS.items() if option in options and section in ("", "model")]
    return f"; it is an option of {', '.join(of)}: give model.options, as '{{{option}: ...}}'" if of else ""


def _is_plain(value: Any) -> bool:
    """Whether a value of an option can be written down and compared: YAML also has dates, sets, bytes and no number."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or (isinstance(value, str | int | float) and value == value)
