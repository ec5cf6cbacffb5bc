"""Retraining one ticket: where its weights come from, the compact network, and what pruning saves."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loft_jax.config import Config, Data
from loft_jax.devices import replicate
from loft_jax.errors import UserError
from loft_jax.filters import prune
from loft_jax.loft import State
from loft_jax.models import Network, parameter_count, training_flops
from loft_jax.randomness import Purpose, key_for
from loft_jax.retrain.job import TRAINED, Job
from loft_jax.retrain.results import cost_share
from loft_jax.signals import Preemption
from loft_jax.storage import RunDirectory
from loft_jax.tickets import Snapshots, Ticket, check_fits, load_own_data
from loft_jax.train import Experiment, StepLoop, images_per_second, train_to_the_end

Tree = dict[str, Any]
Costs = dict[str, float | None]


class Retraining:
    """Retrains tickets of one run, on the run's own data.

    Args:
      directory: directory of the run.
      data: how to read the run's data set.
      timed: whether to time a step of each ticket and of the unpruned network, for which both must be compiled.

    Raises:
      UserError: the run has no snapshots, or its data cannot be read, or are other data than it was trained on.
    """

    def __init__(self, directory: RunDirectory, data: Data, *, timed: bool = True):
        self._timed = timed
        self.snapshots = Snapshots(directory, lambda: self._dataset)
        self._full_widths = {group.name: group.width for group in self.snapshots.groups}
        self._dataset = load_own_data(directory, data)
        self._costs: dict[Any, Costs] = {}
        self._built: tuple[Any, Experiment] | None = None

    def check(self, ticket: Ticket) -> None:
        """Raise UserError, naming the filter group, unless the ticket is of this run and fits its model."""
        check_fits(ticket, self.snapshots.groups, self.snapshots.config.hash())

    def run(self, job: Job, preemption: Preemption | None = None) -> Tree:
        """Retrain to the last round in the job's opened directory, from its newest checkpoint if there is one.

        The filters that the mode keeps are written there as ticket.json.

        Returns:
          The summary of the retraining.

        Raises:
          UserError: a snapshot does not fit the model.
          RunStopped: the loss is no longer finite, or a file cannot be written.
          Preempted: a stop was requested through `preemption`.
        """
        ticket, config = self._choose_filters(job), job.config
        experiment = self._experiment(config, ticket.widths)
        costs = self._measure_costs(experiment)
        kept, all_filters = (sum(widths.values()) for widths in (ticket.widths, self._full_widths))
        print(f"network   {kept:,} of {all_filters:,} filters, {_describe_costs(costs)}", flush=True)
        start = partial(self._start, experiment, job, ticket)
        summary = train_to_the_end(
            experiment, job.directory, start, snapshots=(), preemption=preemption, first_round=job.first_round
        )
        facts = {
            "run_config_hash": self.snapshots.config.hash(),
            "ticket": job.ticket.name,
            "mode": job.mode,
            "rewind_to": job.rewind_to,
        }
        rounds = config.train.rounds - job.first_round
        facts |= {"ticket_round": job.ticket.round, "rounds": rounds}
        facts |= {"epochs": config.epochs(rounds, self._dataset.examples)}
        facts |= {"settings": config.model_copy(update={"seed": 0}).hash()}
        facts |= {"rules": ticket.rules.name} if ticket.rules.name else {}
        return summary | facts | {"ratio": ticket.ratio, "scope": ticket.scope, "norm": ticket.norm} | costs

    def _experiment(self, config: Config, widths: dict[str, int]) -> Experiment:
        # The last experiment is kept: tickets and modes of the same shape and seed share its compiled programs.
        if self._built is None or self._built[0] != (config, widths):
            self._built = None
            self._built = (config, widths), Experiment.build(config, dataset=self._dataset, widths=widths)
        return self._built[1]

    def _choose_filters(self, job: Job) -> Ticket:
        """Return the ticket with the filters that the job's mode keeps."""
        ticket, seed = job.ticket, job.config.seed
        if job.mode == "random":
            return replace(ticket, kept=random_filters(seed, self._full_widths, ticket.widths))
        if job.mode == "init":
            return ticket.redraw(self.snapshots.scores(0, ticket.norm, ticket.rules.score_batches), 0)
        return ticket

    def _start(self, experiment: Experiment, job: Job, ticket: Ticket) -> State:
        if job.mode == "reinit":
            # The full network's initialisation, pruned: the ticket's first weights had the same distribution.
            key = key_for(job.config.seed, Purpose.REINITIALISATION)
            params = experiment.initialise("params", key, self._full_widths)
        else:
            source = ticket.round if job.mode in TRAINED else job.rewind_to
            params = self.snapshots.variables(source)["params"]
        state = experiment.state_from(prune({"params": params}, self.snapshots.groups, ticket.kept)["params"])
        state = replace(state, round=jnp.int32(job.first_round))
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (state, experiment.state_shapes))
        if shapes[0] != shapes[1]:
            raise UserError(f"{self.snapshots.path}: its snapshots are of another model or of data with other classes")
        ticket.write(job.directory.path)
        return replicate(state, experiment.mesh)

    def _measure_costs(self, experiment: Experiment) -> Costs:
        """Measure parameters, FLOPs and speed of the compact and the unpruned network, once for each shape."""
        full = experiment.model.with_widths(self._full_widths)
        key = (experiment.model, experiment.config.data.batch_size)
        if key not in self._costs:
            self._costs[key] = _costs(experiment, full, timed=self._timed)
        return self._costs[key]


def _costs(experiment: Experiment, full: Network, *, timed: bool) -> Costs:
    """Return parameters, FLOPs and speed of the compact and the unpruned network; without `timed`, None as speeds."""
    step, dataset, batch_size = experiment.method.step, experiment.dataset, experiment.config.data.batch_size
    networks, shape = (experiment.model, full), experiment.dataset.image_shape
    speeds: tuple[float | None, float | None] = (None, None)
    if timed:
        compact, unpruned = (StepLoop(step, network, dataset, batch_size) for network in networks)
        speeds = images_per_second(compact, unpruned)
    measured = {
        "parameters": [parameter_count(network, shape) for network in networks],
        "flops_per_image": [training_flops(network, shape).computed for network in networks],
        "steps_images_per_second": speeds,
    }
    return {f"{name}{of}": both[i] for name, both in measured.items() for i, of in enumerate(("", "_unpruned"))}


def _describe_costs(costs: Costs) -> str:
    keys = ("parameters", "flops_per_image", "steps_images_per_second")
    parameters, flops, speed = (cost_share(costs, key) for key in keys)
    timed = "" if speed is None else f" and {speed:.2f} times its speed"
    return (
        f"{costs['parameters']:,} parameters: {parameters:.0%} of the unpruned network's; "
        f"a step has {flops:.0%} of its FLOPs{timed}"
    )


def random_filters(seed: int, widths: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """Draw, uniformly, as many filters of each group as `sizes` says. Returns ascending indices."""
    drawn = {}
    for number, (name, n) in enumerate(widths.items()):
        order = jax.random.permutation(key_for(seed, Purpose.RANDOM_TICKET, number), n)
        drawn[name] = sorted(np.asarray(order)[: sizes[name]].tolist())
    return drawn
