"""The state of training in one type: what a checkpoint holds, and what a run starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.devices import REPLICATED, distribute, replicate
from loft_jax.filters import MOMENTS, FilterGroup, draw_partition, flatten_paths, unflatten_paths
from loft_jax.loft.beside import parts_of, start_beside
from loft_jax.loft.split import split_groups
from loft_jax.models import Network
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a whole run, of one worker's sub-CNN, or of one stage of the pipeline: a pytree.

    Attributes:
      batch_stats: running norm statistics of training; {} where the network has none.
      beside: what syncs keep beside the variables, {part: nested dicts} (`beside.py`); None if nothing.
      kept: a tree like `params`, bool: which weights there are; the others stay 0. None if there are all.
      momentum: a tree like `params`, SGD's trace or Adam's first moment; None if every round starts with zeros.
      owners: group name -> bool [S, n], the partition of the next round if it depends on the last one; otherwise None.
      params: the network's parameters, float32.
      round: completed rounds, int32 scalar; None in the state of a worker or a stage.
      second_moment: as `momentum`, the second moment of Adam; None under SGD.
    """

    batch_stats: Any = field(default_factory=dict)
    beside: Any = None
    kept: Any = None
    momentum: Any = None
    owners: Any = None
    params: Any
    round: Any = None
    second_moment: Any = None

    @property
    def variables(self) -> Tree:
        """{"params", "batch_stats"}, as a network's `apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def collections(self) -> Tree:
        """What local steps change, with the paths of filter groups: `variables`, and the moments that there are."""
        return self.variables | self.moments

    @property
    def moments(self) -> Tree:
        """{"momentum", "second_moment"}, as far as there are any."""
        moments = {name: getattr(self, name) for name in MOMENTS}
        return {name: moment for name, moment in moments.items() if moment is not None}

    @classmethod
    def from_collections(cls, collections: Mapping[str, Any], **others: Any) -> Self:
        """Make the state that has these `collections`, and `beside`, `owners`, `round` and `kept` as given."""
        return cls(**collections, **others)

    def with_collections(self, collections: Mapping[str, Any]) -> Self:
        """Return the same state with these `collections` in place of its own."""
        return replace(self, **collections)

    def with_zero_moments(self, names: Sequence[str]) -> Self:
        """Return the same state with these moments, at zero."""
        return replace(self, **{name: jax.tree.map(jnp.zeros_like, self.params) for name in names})

    def without_moments(self) -> Self:
        """Return the same state without moments, as it is between rounds under `loft.momentum: reset`."""
        return replace(self, momentum=None, second_moment=None)

    def with_all_kept(self) -> Self:
        """Return the same state with `kept`, where no weight is pruned yet."""
        return replace(self, kept=jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), self.params))

    def checkpoint(self, variables: Mapping[str, Any]) -> Tree:
        """Return what a run saves to resume from: {"variables", "training", "round"}, nested dicts.

        Args:
          variables: `variables` of this state with re-estimated norm statistics, ready to evaluate.
        """
        training = {
            "batch_stats": self.batch_stats,
            "beside": {part: tree for part, tree in (self.beside or {}).items() if tree},
            "kept": self.kept,
            "owners": self.owners,
            **self.moments,
        }
        training = {name: value for name, value in training.items() if value is not None and value != {}}
        return {"variables": dict(variables), "training": training, "round": self.round}

    @classmethod
    def from_checkpoint(cls, saved: Mapping[str, Any]) -> Self:
        """Make the state from what `checkpoint` returned."""
        return cls(params=saved["variables"]["params"], round=saved["round"], **saved["training"])


def initial_state(model: Network, config: Config, image_shape: tuple[int, ...]) -> State:
    """Initialise the state of a run before its first round; its random numbers depend on the seed alone."""
    key = key_for(config.seed, Purpose.INITIALISATION)
    variables = model.init(key, jnp.zeros((1, *image_shape)))
    return starting_state(variables, config, split_groups(model, config))


def starting_state(variables: Mapping[str, Any], config: Config, groups: Sequence[FilterGroup]) -> State:
    """Make the state of a run that starts from these variables: round 0, and zero momentum if it is carried."""
    owners = None
    if exchanges(config, groups):
        owners = draw_partition(key_for(config.seed, Purpose.PARTITION, 0), groups, config.loft.workers)
    state = State(
        params=variables["params"], batch_stats=variables.get("batch_stats", {}), owners=owners, round=jnp.int32(0)
    )
    if config.loft.momentum == "carry":
        state = state.with_zero_moments(config.optimizer.moments)
    beside = start_beside(config, groups, flatten_paths(state.collections))
    return replace(state, beside=beside and {part: unflatten_paths(tree) for part, tree in beside.items()})


def full_specs(config: Config) -> State:
    """Return the sharding of a full state over the mesh: on every device, but for what is kept beside by worker."""
    specs: dict[str, Any] = {field.name: REPLICATED for field in fields(State)}
    return State(**specs | {"beside": parts_of(config) or None})


def put_state(state: State, config: Config, mesh: Mesh) -> State:
    """Put a full state, which every process has, on a mesh: on every device, but for what is kept beside by worker."""
    specs = parts_of(config)
    beside = state.beside and {
        part: distribute(tree, NamedSharding(mesh, specs[part])) for part, tree in state.beside.items()
    }
    return replace(replicate(replace(state, beside=None), mesh), beside=beside)


def exchanges(config: Config, groups: Sequence[FilterGroup]) -> bool:
    """Whether filters go from worker to worker: `loft.sync: exchange`, and something is split."""
    return config.loft.sync == "exchange" and config.loft.workers > 1 and any(group.partitioned for group in groups)
