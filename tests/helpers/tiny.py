"""A network and a data set small enough that a round compiles in seconds."""

from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding

from loft_jax.config.config import Config
from loft_jax.data.dataset import Dataset
from loft_jax.data.streaming.dataset import StreamedDataset
from loft_jax.devices.mesh import PER_WORKER, make_mesh, replicate
from loft_jax.devices.setup import jit_once
from loft_jax.loft.images import make_images
from loft_jax.loft.state import State, initial_state
from loft_jax.methods.build import make_method
from loft_jax.models.resnet import ResNet

# Partitioned: stage2/block2, width 8. Everything else is shared under `partition: paper`.
MODEL = ResNet(blocks=(1, 2), num_classes=3, width=4, preactivation=True)


def dataset(train: int = 40, test: int = 22) -> Dataset:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, size=n).astype(np.int32) for n in (train, test)]
    images = [
        np.clip(rng.normal(100 + 40 * y[:, None, None, None], 30, size=(len(y), 6, 6, 2)), 0, 255).astype(np.uint8)
        for y in labels
    ]
    return Dataset("tiny", images[0], labels[0], images[1], labels[1], num_classes=3, crop_padding=1, flip=True)


def config(**settings: Any) -> Config:
    """The config of dotted keys (dots as double underscores), over four workers, three steps of batch 4 a round."""
    nested: dict[str, Any] = {
        "data": {"batch_size": 4},
        "loft": {"workers": 4, "local_steps": 3},
        "optimizer": {"learning_rate": 0.05},
        "train": {"rounds": 5, "norm_batches": 3},
    }
    for key, value in settings.items():
        *sections, leaf = key.split("__")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[leaf] = value
    return Config.model_validate(nested)


@dataclass
class Run:
    """A round's programs with their data and state on a mesh."""

    config: Config
    fused: bool | None = None
    model: nn.Module = MODEL
    dataset: Dataset | StreamedDataset | None = None
    pruned: bool = False

    def __post_init__(self) -> None:
        self.dataset, self.mesh = self.dataset or dataset(), make_mesh(self.config)
        self.model = self.model.clone(dtype=jnp.dtype(self.config.precision))
        self.images = make_images(self.config, self.dataset, self.mesh)
        parts = (self.config, self.model, self.dataset, self.mesh, self.images)
        self.round = make_method(*parts, fused=self.fused)
        # At rest on the host, from one program whatever the mesh; unoptimised, because random numbers compile slowly.
        start = jit_once(self._start)()
        self.full = jax.device_get(start)
        self.state = self.round.place(replicate(self.full, self.mesh))

    def _start(self) -> State:
        state = initial_state(self.model, self.config, self.dataset.image_shape)
        if self.pruned:
            # About a third of the kernels' weights.
            kept = jax.tree_util.tree_map_with_path(
                lambda path, leaf: jnp.abs(leaf) > 0.1 if path[-1].key == "kernel" else jnp.ones(leaf.shape, bool),
                state.params,
            )
            params = jax.tree.map(lambda here, leaf: jnp.where(here, leaf, 0), kept, state.params)
            state = replace(state, kept=kept, params=params)
        return state

    def rounds(self, count: int) -> dict[str, Any]:
        """The full state after so many further rounds, as a dict of numpy arrays."""
        for _ in range(count):
            masks, workers = self.round.train_locally(self.state)
            self.state, self.loss = self.round.finish(self.state, masks, workers)
        return as_dict(jax.device_get(self.round.full(self.state)))

    @property
    def programs(self) -> dict[str, jax.stages.Lowered]:
        """The round's programs, lowered for the shapes of the state."""
        return {name: program.lower() for name, program in self.round.programs(self.full).items()}


def train_alike(one: Run, other: Run) -> tuple[dict[str, Any], jax.Array]:
    """Train a run for a round, and one under psum with its partition. Returns one state, and the other loss."""
    owners = jax.device_get(one.round.sync.partition(one.state))
    state = one.rounds(1)
    masks = {name: jax.device_put(mask, NamedSharding(other.mesh, PER_WORKER)) for name, mask in owners.items()}
    _, workers = other.round.train_locally(other.state, masks)
    other.state, loss = other.round.finish(other.state, masks, workers)
    return state, loss


def as_dict(state: State) -> dict[str, Any]:
    """What a state has, by name."""
    return {field.name: value for field in fields(state) if (value := getattr(state, field.name)) is not None}


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
