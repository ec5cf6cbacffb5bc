"""Protocol of a network's origin: what Linen and NNX modules have in common here."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax

Tree = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

_TRAINING = dict.fromkeys(("train", "training", "is_training"), True)
_EVALUATION = dict.fromkeys(("deterministic", "use_running_average", "inference", "eval"), False)


@dataclass(frozen=True)
class Norms:
    """How batch norms work in training.

    Attributes:
      axis: mesh axis over whose devices a batch is spread, None for one device.
      momentum: weight of the old running statistics, None for the module's own.
    """

    axis: str | None = None
    momentum: float | None = None


class Source(Protocol):
    """A module of any origin as pure functions of variables {"params", "batch_stats"}. Hashable.

    Attributes:
      name: of the module's class or function, for messages.
      module: the module, of shapes where it holds arrays.
    """

    @property
    def name(self) -> str: ...

    @property
    def module(self) -> Any: ...

    def init(self, key: jax.Array, x: Any, shapes: Shapes) -> Tree:
        """Initialise the variables, "batch_stats" among them even where it is empty.

        Args:
          key: JAX PRNG key.
          x: images, or their shape.
          shapes: path -> shape of the variables of a narrower network; {} for the network as it is.
        """
        ...

    def apply(
        self, variables: Tree, x: jax.Array, *, train: bool, shapes: Shapes, norms: Norms, key: jax.Array | None
    ) -> tuple[Any, Tree]:
        """Return the module's result and the running statistics, updated if `train`.

        Args:
          shapes: as for `init`.
          key: for what is drawn in training; None where nothing is.
        """
        ...


def mode_arguments(call: Callable[..., Any], train: bool) -> dict[str, bool]:
    """Return the keyword arguments that put a module into training or evaluation, by their usual names."""
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):
        return {}
    return {name: train is value for name, value in (_TRAINING | _EVALUATION).items() if name in parameters}
