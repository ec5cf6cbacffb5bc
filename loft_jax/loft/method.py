"""What a method of pretraining must offer to be trained, evaluated, counted and compiled like any other."""

from typing import Any, Protocol

import jax

from loft_jax.filters import FilterGroup
from loft_jax.loft.local_step import LocalStep
from loft_jax.loft.program import RoundProgram
from loft_jax.loft.state import State


class Method(Protocol):
    """How a run pretrains: LoFT's round (`loft_jax.loft.round`), and the pipeline (`loft_jax.gpipe.pipeline`).

    A round is `train_locally`, then `finish`. The state between rounds is the method's own type, a pytree with "round"
    as an attribute; `place` and `full` translate.

    Attributes:
      groups: the model's filter groups, `partitioned` where the run splits them.
      step: a local step, of the network that a worker trains.
      holds_full: whether every device holds the full state between rounds, so that `full` moves nothing.
    """

    @property
    def groups(self) -> tuple[FilterGroup, ...]: ...
    @property
    def step(self) -> LocalStep: ...
    @property
    def holds_full(self) -> bool: ...

    def place(self, full: State) -> Any:
        """Take the full state, on every device of the mesh, to the state between rounds."""
        ...

    def full(self, state: Any) -> State:
        """Take the state between rounds to the full state, on every device of the mesh."""
        ...

    def train_locally(self, state: Any) -> tuple[Any, Any]:
        """Run the local steps of one round. Returns who owns what, and what the devices have trained."""
        ...

    def finish(self, state: Any, masks: Any, workers: Any) -> tuple[Any, jax.Array]:
        """End the round with what `train_locally` returned: the next state, and the mean loss of all local steps."""
        ...

    def programs(self, full: State) -> dict[str, RoundProgram]:
        """Name the programs of one round, for a full state or its shapes; nothing is compiled or run."""
        ...

    def resident(self, full: State) -> dict[str, int]:
        """Count the bytes beside images that stay on a program's device while it runs: name of the program -> bytes."""
        ...

    def assembly(self, full: State) -> dict[str, RoundProgram]:
        """Name the programs with collectives that `full` runs between rounds, one run each; {} where there are none."""
        ...

    def describe(self, full: State) -> dict[str, str]:
        """Say what it does in the first lines of a run: label -> text."""
        ...

    def figures(self, full: State) -> dict[str, Any]:
        """Give what it adds to the summary of a run."""
        ...
