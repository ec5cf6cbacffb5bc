"""Protocol of a method of pretraining: what it must offer to be trained, evaluated, counted and compiled."""

from typing import Any, Protocol

import jax

from loft_jax.filters import FilterGroup
from loft_jax.loft.local_step import LocalStep
from loft_jax.loft.program import RoundProgram
from loft_jax.loft.state import State


class Method(Protocol):
    """A method of pretraining: LoFT's round (`loft_jax.loft.round`) or the pipeline (`loft_jax.gpipe.pipeline`).

    A round is `train_locally`, then `finish`. The state between rounds is the method's own type, a pytree with "round"
    as an attribute; `place` and `full` convert between it and the full state.

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
        """Convert the full state, on every device of the mesh, to the state between rounds."""
        ...

    def full(self, state: Any) -> State:
        """Convert the state between rounds to the full state, on every device of the mesh."""
        ...

    def train_locally(self, state: Any) -> tuple[Any, Any]:
        """Run the local steps of one round. Returns the masks of who owns what, and what the devices have trained."""
        ...

    def finish(self, state: Any, masks: Any, workers: Any) -> tuple[Any, jax.Array]:
        """End the round with what `train_locally` returned. Returns the next state, and the mean loss of all steps."""
        ...

    def programs(self, full: State) -> dict[str, RoundProgram]:
        """Return the programs of one round by name, for a full state or its shapes; nothing is compiled or run."""
        ...

    def resident(self, full: State) -> dict[str, int]:
        """Count the bytes, without images, that stay on a program's device while it runs: program name -> bytes."""
        ...

    def assembly(self, full: State) -> dict[str, RoundProgram]:
        """Return the programs with collectives that `full` runs between rounds, once each, by name; {} without any."""
        ...

    def describe(self, full: State) -> dict[str, str]:
        """Return what the first lines of a run say about the method: label -> text."""
        ...

    def figures(self, full: State) -> dict[str, Any]:
        """Return what the method adds to the summary of a run."""
        ...
