"""From a config to what a run is made of: JAX configured, data, mesh, model and the programs, each checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh

from loft_jax.config import Config
from loft_jax.data import AnyDataset, load_dataset
from loft_jax.devices import DATA, WORKER, jit_once, make_mesh, replicate
from loft_jax.errors import UserError
from loft_jax.gpipe import GPipe
from loft_jax.loft import (
    Evaluator,
    NormEstimator,
    Round,
    Traffic,
    TrainingData,
    initial_state,
    step_traffic,
    sync_traffic,
    training_data,
)
from loft_jax.methods import check_data, check_model
from loft_jax.models import model_of, parameter_count


@dataclass(frozen=True)
class Experiment:
    """A run's parts."""

    config: Config
    dataset: AnyDataset
    mesh: Mesh
    model: nn.Module
    round: Round | GPipe
    estimate_norms: NormEstimator
    evaluate: Evaluator
    data: TrainingData

    @classmethod
    def build(
        cls,
        config: Config,
        *,
        dataset: AnyDataset | None = None,
        widths: Mapping[str, int] | None = None,
    ) -> "Experiment":
        """Load and build all parts.

        Args:
          dataset: one loaded before, instead of the config's.
          widths: filter group -> number of filters, for groups smaller than the model declares (a ticket's).

        Raises:
          UserError: model, data or devices do not fit the config.
        """
        # What the model alone can tell is told before devices and data are looked at.
        check_model(model_of(config, 1), config)
        mesh = make_mesh(config)
        if config.gpipe.stages is not None and jax.process_count() > 1:
            raise UserError(
                f"gpipe.stages={config.gpipe.stages}: GPipe runs in one process, and {jax.process_count()} have been "
                "started; start one"
            )
        dataset = dataset or load_dataset(config)
        check_data(config, dataset, dataset.name)
        model = model_of(config, dataset.num_classes).with_widths(widths or {})
        return cls(
            config=config,
            dataset=dataset,
            mesh=mesh,
            model=model,
            round=(Round if config.gpipe.stages is None else GPipe)(config, model, dataset, mesh),
            estimate_norms=NormEstimator(config, model, dataset, mesh),
            evaluate=Evaluator(config, model, dataset, mesh),
            data=training_data(config, dataset, mesh),
        )

    def initial_state(self) -> dict[str, Any]:
        """The state before the first round, on the mesh."""
        return replicate(jit_once(self._initialise)(), self.mesh)

    def state_shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of the state; computes nothing."""
        return jax.eval_shape(self._initialise)

    @cached_property
    def sync_traffic(self) -> Traffic:
        """What a sync of LoFT moves between the worker devices of the mesh."""
        return sync_traffic(self.state_shapes(), self.round.groups, self.config, self.mesh.shape[WORKER])

    @cached_property
    def step_traffic(self) -> Traffic:
        """What a local step moves between the devices that share a worker's batch."""
        parameters = parameter_count(self.round.step.model, self.dataset.image_shape)
        return step_traffic(parameters, self.mesh.shape[DATA])

    def bytes_on_the_wire(self) -> float:
        """What the last round's training sent, all devices together: GPipe's as it was sent, LoFT's by the ledger."""
        if isinstance(self.round, GPipe):
            return self.round.transfers.bytes
        steps = self.config.loft.workers * self.config.loft.local_steps
        return self.mesh.shape[DATA] * self.sync_traffic.wire + steps * self.step_traffic.wire

    def _initialise(self) -> dict[str, Any]:
        return initial_state(self.model, self.config, self.dataset.image_shape)
