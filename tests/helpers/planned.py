"""Plans of tiny settings."""

from helpers import tiny
from loft_jax.data.facts import Facts
from loft_jax.plan.planner import make_plan
from loft_jax.plan.topology import Topology


def planned(topology, **settings):
    config, dataset = tiny.config(**settings), tiny.dataset()
    return make_plan(config, Topology.parse(topology), Facts.from_dataset(dataset), dataset, model=tiny.MODEL)
