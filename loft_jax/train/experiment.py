"""Builds the parts of a run from its config, and checks them: data, mesh, model, method and its programs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import jax
from jax.sharding import Mesh

from loft_jax.config import Config
from loft_jax.cost import RoundBill, data_bytes
from loft_jax.data import AnyDataset, Facts, load_dataset
from loft_jax.devices import jit_once, make_mesh, replicate
from loft_jax.loft import Evaluator, Images, Method, NormEstimator, State, initial_state, make_images
from loft_jax.methods import check_data, check_method, make_method
from loft_jax.models import Network, make_model


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
          dataset: a data set that is loaded already, to use instead of the config's.
          widths: filter group -> number of filters, for groups that have fewer than the model declares (of a ticket).

        Raises:
          UserError: model, data or devices do not fit the config.
        """
        # Errors that the model alone shows are reported before devices and data are looked at.
        check_method(make_model(config, 1), config)
        mesh = make_mesh(config)
        dataset = dataset or load_dataset(config)
        check_data(config, dataset, dataset.name)
        model = make_model(config, dataset.num_classes).with_widths(widths or {})
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
        )

    def initial_state(self) -> State:
        """Make the state before the first round, on the mesh."""
        return replicate(jit_once(self._initialise)(), self.mesh)

    @cached_property
    def state_shapes(self) -> State:
        """Shapes and dtypes of the full state; computes nothing."""
        return jax.eval_shape(self._initialise)

    @cached_property
    def bill(self) -> RoundBill:
        """The bill of a round: what it sends, and what its programs need."""
        data = data_bytes(Facts.from_dataset(self.dataset), self.config, self.mesh.size)
        return RoundBill(self.method, self.mesh, self.state_shapes, data)

    def _initialise(self) -> State:
        return initial_state(self.model, self.config, self.dataset.image_shape)
