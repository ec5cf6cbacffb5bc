"""The snapshots of a run, read one at a time and checked against the run's model."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from loft_jax.config import Data
from loft_jax.data import AnyDataset, data_identity, load_dataset
from loft_jax.devices import make_mesh
from loft_jax.errors import UserError
from loft_jax.filters import (
    NO_RULES,
    Norm,
    Rules,
    Scope,
    check_ranks,
    check_scores,
    draw_kept,
    filter_cuts,
    flatten_paths,
    rank_filters,
    score_filters,
)
from loft_jax.loft import TaylorScorer
from loft_jax.models import make_model, needs_images, variable_shapes
from loft_jax.storage import RunDirectory, read_state
from loft_jax.tickets.ticket import Ticket

Tree = dict[str, Any]


class Snapshots:
    """A run's snapshots, with its config and the filter groups of its model. Raises UserError where there are none.

    Args:
      directory: of the run.
      dataset: loads the run's data, for scores that need training batches; None to read them as the run did.

    Attributes:
      model: the full network; its number of classes and images are those of the run only if `knows_data`.
      image_shape: height, width, channels.
    """

    def __init__(self, directory: RunDirectory, dataset: Callable[[], AnyDataset] | None = None):
        self._dataset = dataset or (lambda: load_own_data(directory, self.config.data))
        self._scorer: tuple[int, TaylorScorer] | None = None
        self.directory, self.path, self.rounds = directory, directory.path, directory.snapshot_rounds()
        self.config = directory.read_config()
        self.config_hash: str | None = self.config.hash()
        identity = directory.data_identity() or {}
        if needs_images(self.config) and "image_shape" not in identity:
            raise UserError(
                f"{self.path}: data.json is missing or damaged, and {self.config.model.name} is made for the images "
                "that it was trained on; run its training once more, which writes it"
            )
        # The groups of the others do not depend on the data.
        image_shape = tuple(identity.get("image_shape", (32, 32, 3)))
        self.image_shape, self.knows_data = image_shape, {"image_shape", "classes"} <= identity.keys()
        self.model = model = make_model(self.config, identity.get("classes", 1), image_shape)
        shapes = variable_shapes(model, image_shape)
        self._kernels = {path: leaf.shape[:-2] for path, leaf in flatten_paths(shapes).items()}
        self.groups = model.filter_groups()

    def variables(self, round_number: int) -> Tree:
        """Read {"params", "batch_stats"} of the full CNN from the snapshot of a round, as numpy arrays.

        Raises:
          UserError: it cannot be read, is damaged or is of another model.
        """
        way_out = "delete that directory to go on without that round" if round_number else "train the run again"
        try:
            variables = read_state(self.directory.snapshots, round_number)["variables"]
        except UserError as error:
            raise UserError(f"{error}; {way_out}") from None
        self._check(variables, round_number)
        return variables

    def scores(self, round_number: int, norm: str, batches: int = NO_RULES.score_batches) -> dict[str, np.ndarray]:
        """Compute `score_filters` at a round, or the scores of `TaylorScorer`: float32 [n] for each group.

        Args:
          batches: number of training batches for scores that need some.

        Raises:
          UserError: as `variables`, or a group has no such score, or one is not finite; or the data cannot be read, or
            are not those of the run.
        """
        score = self._taylor(batches) if norm == "taylor" else partial(score_filters, groups=self.groups, norm=norm)
        return finite_scores(self.variables(round_number), score, f"{self.path}, round {round_number}")

    def ticket(
        self,
        scores: dict[str, np.ndarray],
        round_number: int,
        ratio: float,
        scope: Scope,
        norm: Norm,
        rules: Rules = NO_RULES,
    ) -> Ticket:
        """Draw a ticket from a round's scores, given by `norm`.

        Raises:
          ValueError: a ratio or scope is out of range.
        """
        kept = draw_kept(scores, ratio, scope, rules)
        return Ticket(kept, ratio, scope, norm, round_number, str(self.path), self.config.hash(), rules)

    def check_rules(self, rules: Rules) -> None:
        """Raise UserError unless each pattern of the rules matches one of the groups."""
        try:
            rules.check(group.name for group in self.groups)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from None

    def _taylor(self, batches: int) -> TaylorScorer:
        if self._scorer is None or self._scorer[0] != batches:
            dataset = self._dataset()
            model = make_model(self.config, dataset.num_classes, dataset.image_shape)
            mesh = make_mesh(self.config)
            self._scorer = batches, TaylorScorer(self.config, model, self.groups, dataset, mesh, batches)
        return self._scorer[1]

    def _check(self, variables: Tree, round_number: int) -> None:
        flat = flatten_paths(variables)
        name = f"{self.path}, round {round_number}: holds a snapshot of another model than {self.config.model.name}"
        kernels = {path: leaf.shape[:-2] for path, leaf in flat.items()}
        if differing := sorted(
            path for path in self._kernels | kernels if self._kernels.get(path) != kernels.get(path)
        ):
            raise UserError(f"{name} ({differing[0]!r} differs between them); use the config it was made with")
        for path, cuts in filter_cuts(self.groups).items():
            for cut in cuts:
                try:
                    cut.check(path, flat[path].shape)
                except ValueError as error:
                    raise UserError(f"{name}: {error}; use the config it was made with") from None


def load_own_data(directory: RunDirectory, data: Data) -> AnyDataset:
    """Load the data set of a run, read as `data` says. Raises UserError if these are other data than it was trained on.

    The split always uses the run's seed, so that no test image was trained on.
    """
    dataset = load_dataset(directory.read_config().model_copy(update={"data": data}))
    directory.agree_on_data(data_identity(dataset))
    return dataset


def finite_scores(
    variables: Mapping[str, Any], score: Callable[[Mapping[str, Any]], Mapping[str, Any]], label: str
) -> dict[str, np.ndarray]:
    """Compute scores as numpy arrays; raise UserError, beginning with the label, unless all are finite."""
    try:
        scores = jax.device_get(dict(score(variables)))
        for name, values in scores.items():
            check_scores(values, name)
    except ValueError as error:
        raise UserError(f"{label}: {error}") from None
    return scores


def rank_groups(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rank the filters of every group by score: int32 [n] each. Raises UserError unless ranks are permutations."""
    rankings = {name: np.asarray(rank_filters(values)) for name, values in scores.items()}
    try:
        for name, ranks in rankings.items():
            check_ranks(ranks, name)
    except ValueError as error:
        raise UserError(str(error)) from None
    return rankings
