"""Builds the parts of a run from its config, and checks them: data, mesh, model, method and its programs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from loft_jax.config import Config
from loft_jax.cost import RoundBill, data_bytes
from loft_jax.data import AnyDataset, Facts, load_dataset
from loft_jax.devices import find_chip, jit_once, make_mesh
from loft_jax.errors import UserError
from loft_jax.loft import (
    Evaluator,
    Images,
    Method,
    NormEstimator,
    State,
    initial_state,
    make_images,
    put_state,
    starting_state,
)
from loft_jax.methods import check_data, check_method, make_method
from loft_jax.models import Network, make_model, needs_images, training_flops
from loft_jax.storage import load_weights

Tree = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """The parts of a run."""

    config: Config
    dataset: AnyDataset
    mesh: Mesh
    model: Network
    images: Images
    method: Method
    estimate_norms: NormEstimator
    evaluate: Evaluator
    validate: Evaluator | None
    pruned: bool = False

    @classmethod
    def build(
        cls,
        config: Config,
        *,
        dataset: AnyDataset | None = None,
        widths: Mapping[str, int] | None = None,
        pruned: bool = False,
    ) -> "Experiment":
        """Load and build all parts.

        Args:
          dataset: a data set that is loaded already, to use instead of the config's.
          widths: filter group -> number of filters, for groups that have fewer than the model declares (of a ticket).
          pruned: whether states say which weights there are (`State.kept`).

        Raises:
          UserError: model, data or devices do not fit the config.
        """
        if pruned and config.gpipe.stages is not None:
            raise UserError(f"gpipe.stages={config.gpipe.stages}: GPipe trains no pruned weights; leave it out")
        # Errors that the model alone shows are reported before devices and data are looked at.
        if not needs_images(config):
            check_method(make_model(config, 1), config)
        mesh = make_mesh(config)
        dataset = dataset or load_dataset(config)
        check_data(config, dataset, dataset.name)
        model = make_model(config, dataset.num_classes, dataset.image_shape)
        if needs_images(config):
            check_method(model, config)
        model = model.with_widths(widths or {})
        images = make_images(config, dataset, mesh)
        return cls(
            config=config,
            dataset=dataset,
            mesh=mesh,
            model=model,
            images=images,
            method=make_method(config, model, dataset, mesh, images),
            estimate_norms=NormEstimator(config, model, dataset, mesh, images),
            evaluate=Evaluator(config, model, dataset, mesh, images),
            validate=Evaluator(config, model, dataset, mesh, images, split="validation")
            if dataset.validation_examples
            else None,
            pruned=pruned,
        )

    def initial_state(self) -> State:
        """Make the state before the first round, on the mesh."""
        state = jit_once(self._initialise)()
        if file := self.config.model.weights:
            loaded = load_weights(file, jax.device_get(state.variables))
            state = replace(starting_state(loaded, self.config, self.method.groups), kept=state.kept)
        return put_state(state, self.config, self.mesh)

    def state_from(self, params: Tree) -> State:
        """Make the state before the first round from parameters that were trained before, or initialised otherwise.

        Running statistics start again, because those of a snapshot are the full CNN's; evaluations re-estimate them.
        """
        variables = {"params": params, "batch_stats": self.initialise("batch_stats", jax.random.key(0))}
        return starting_state(variables, self.config, self.method.groups)

    def initialise(self, collection: str, key: jax.Array, widths: Mapping[str, int] | None = None) -> Tree:
        """Initialise a collection of the network's variables, or of those of the network with these widths."""
        model, image = self.model.with_widths(widths or {}), jnp.zeros((1, *self.dataset.image_shape))
        # Compiled for this collection alone: random numbers take long to compile.
        return jit_once(lambda: model.init(key, image)[collection])()

    @cached_property
    def state_shapes(self) -> State:
        """Shapes and dtypes of the full state; computes nothing."""
        return jax.eval_shape(self._initialise)

    @cached_property
    def bill(self) -> RoundBill:
        """The bill of a round: what it sends, and what its programs need."""
        data = data_bytes(Facts.from_dataset(self.dataset), self.config, self.mesh.size)
        return RoundBill(self.method, self.mesh, self.state_shapes, data)

    def share_of_peak(self, images_per_second: float) -> dict[str, float]:
        """Return {"share_of_peak"}: FLOPs of local steps at this speed, over the peak of the mesh's devices.

        The FLOPs are those of the loss and gradients of the networks that are trained, as written; the peak is that of
        the config's precision (`devices/chips.py`). If no peak is known of the devices, {}.
        """
        if self._peak_flops is None:
            return {}
        return {"share_of_peak": images_per_second * self._flops_per_image / self._peak_flops}

    @cached_property
    def _flops_per_image(self) -> float:
        return training_flops(self.method.step.model.with_norms(axis=None), self.dataset.image_shape).computed

    @cached_property
    def _peak_flops(self) -> float | None:
        """FLOPs a second of all devices of the mesh at their peak; None if it is not known."""
        chip = find_chip(self.mesh.devices.flat[0].device_kind)
        peak = chip.peak_tflops(self.config.precision) if chip else None
        return None if peak is None else peak * 1e12 * self.mesh.size

    def _initialise(self) -> State:
        state = initial_state(self.model, self.config, self.dataset.image_shape)
        return state.with_all_kept() if self.pruned else state
