"""The trainings of one seed: which weights each keeps, from where it starts, and what it leaves."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from loft_jax.config import Config
from loft_jax.data import AnyDataset, Dataset, load_dataset
from loft_jax.errors import UserError
from loft_jax.loft import State, put_state, split_groups
from loft_jax.lottery.masks import MASKS, read_masks, write_masks
from loft_jax.lottery.selection import (
    Masks,
    Pool,
    check_levels,
    count_removed,
    keep_drawn,
    keep_largest,
    make_pools,
    remove_smallest,
)
from loft_jax.lottery.settings import LotteryConfig
from loft_jax.lottery.targets import Filters, Target, Weights, whole
from loft_jax.lottery.training import TICKET, Training, directory_of
from loft_jax.methods import check_data, check_method
from loft_jax.models import Network, make_model
from loft_jax.randomness import Purpose, key_for
from loft_jax.signals import Preemption
from loft_jax.storage import load_checkpoint
from loft_jax.train import Experiment, train_to_the_end

Tree = dict[str, Any]


class Chain:
    """Levels of one seed, each of which is made from the one before.

    Args:
      run: directory of the lottery.
      config: its settings.
      seed: of all trainings; it also draws the images that are held out.

    Raises:
      UserError: settings, network and data do not fit each other, or a level would leave nothing of a layer.
    """

    def __init__(self, run: Path, config: LotteryConfig, seed: int):
        self._run, self._config, self._seed = run, config, seed
        settings = config.training(seed)
        self._dataset = load_dataset(settings)
        check_data(settings, self._dataset, self._dataset.name)
        check_held_out(config, self._dataset)
        model = make_model(settings, self._dataset.num_classes, self._dataset.image_shape)
        check_method(model, settings)
        lottery, shape = config.lottery, self._dataset.image_shape
        self._target: Target = Weights(model, shape)
        if lottery.prune == "filters":
            self._target = Filters(model, shape, relative=lottery.scope == "global")
        shapes = self._target.shapes
        self._pools = make_pools(tuple(shapes), lottery.rate_of_pattern, lottery.scope, self._target.where)
        sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
        check_levels(sizes, self._pools, lottery.levels, self._target.what)
        if lottery.prune == "filters" and config.loft.workers > 1:
            check_split(model, config, self._pools, sizes)
        self._built: tuple[Any, Experiment] | None = None

    def run(self, training: Training, preemption: Preemption | None = None) -> Tree:
        """Train in the training's opened directory, from its newest checkpoint if it has one.

        Its masks are written there first, or read if they are there.

        Returns:
          The summary.

        Raises:
          UserError: a file that it needs is missing or damaged, or nothing of a layer would be left.
          RunStopped: the loss is no longer finite, or a file cannot be written.
          Preempted: a stop was requested through `preemption`.
        """
        masks = self._masks(training.level, training.control)
        experiment = self._experiment(training.config, self._target.widths(masks))
        left, total = (self._target.kernel_weights(some) for some in (masks, whole(self._target)))
        print(f"network   {left:,} of {total:,} weights of kernels are left, {left / total:.1%}", flush=True)
        first = training.level == 0
        summary = train_to_the_end(
            experiment,
            training.directory,
            None if first else partial(self._start, experiment, training.control, masks),
            snapshots={0, self._config.rewind_round} if first else (),
            preemption=preemption,
        )
        facts = {"level": training.level, "control": training.control, "rewind_to": self._config.rewind_round}
        return summary | facts | {"weights_left": left, "weights": total}

    def _experiment(self, config: Config, widths: Mapping[str, int]) -> Experiment:
        # The last one is kept: trainings whose networks have the same shapes share its compiled programs.
        if self._built is None or self._built[0] != widths:
            self._built = None
            self._built = widths, self._target.build(config, self._dataset, widths)
        return self._built[1]

    def _masks(self, level: int, control: str) -> Masks:
        if level == 0:
            return whole(self._target)
        path = directory_of(self._run, self._seed, level, control).path / MASKS
        if path.exists():
            return read_masks(path, self._target.shapes)
        masks = self._pruned(level) if control == TICKET else self._of_control(control, self._masks(level, TICKET))
        write_masks(path, masks)
        return masks

    def _pruned(self, level: int) -> Masks:
        """Remove the smallest weights at the end of the level before."""
        before, lottery = self._masks(level - 1, TICKET), self._config.lottery
        params = self._params(level - 1, self._config.train.rounds)
        scores = self._target.scores(params, before)
        return remove_smallest(before, scores, self._pools, level, lottery.levels, self._target.what)

    def _of_control(self, control: str, ticket: Masks) -> Masks:
        """Make masks that keep as many of each layer as the ticket."""
        if control == "reinit":
            return ticket
        if control == "init":
            return keep_largest(self._target.scores(self._params(0, 0), whole(self._target)), ticket)
        # The same order at every level: what a level keeps, the level before kept too.
        keys = {name: key_for(self._seed, Purpose.RANDOM_TICKET, number) for number, name in enumerate(ticket)}
        orders = {name: np.asarray(jax.random.permutation(key, ticket[name].size)) for name, key in keys.items()}
        return keep_drawn(orders, ticket)

    def _params(self, level: int, round_number: int) -> Tree:
        directory = directory_of(self._run, self._seed, level)
        return load_checkpoint(directory.path, round_number)["variables"]["params"]

    def _start(self, experiment: Experiment, control: str, masks: Masks) -> State:
        if control == "reinit":
            key = key_for(self._seed, Purpose.REINITIALISATION)
            params = experiment.initialise("params", key, self._target.widths(whole(self._target)))
        else:
            params = self._params(0, self._config.rewind_round)
        return put_state(self._target.start(experiment, params, masks), experiment.config, experiment.mesh)


def check_held_out(config: LotteryConfig, dataset: AnyDataset) -> None:
    """Raise UserError if no image of some class is held out for validation."""
    # Images are held out only of data that are kept on the device.
    assert isinstance(dataset, Dataset)
    held = dataset.validation_labels
    assert held is not None
    sizes = np.bincount(dataset.train_labels, minlength=dataset.num_classes)
    for number in np.flatnonzero((np.bincount(held, minlength=dataset.num_classes) == 0) & (sizes > 0)):
        raise UserError(
            f"data.validation={config.data.validation:g}: {len(held)} images are held out, and none of the "
            f"{sizes[number]} of class {number}; the step of least validation loss would not see that class; hold out "
            "more"
        )


def check_split(model: Network, config: LotteryConfig, pools: tuple[Pool, ...], sizes: Mapping[str, int]) -> None:
    """Raise UserError if a level leaves numbers of filters that the workers cannot share."""
    if config.loft.partition == "none":
        return
    if config.lottery.scope == "global":
        raise UserError(
            f"lottery.scope=global: how many filters of a group are left is not known before, and "
            f"loft.workers={config.loft.workers} must share them; use layer, or loft.workers=1"
        )
    left = dict(sizes)
    for level in range(1, config.lottery.levels + 1):
        for pool in pools:
            (name,) = pool.names
            left[name] -= count_removed(left[name], pool.rate)
        try:
            split_groups(model.with_widths(left), config)
        except ValueError as error:
            raise UserError(f"lottery.levels={config.lottery.levels}: at level {level}, {error}") from None
