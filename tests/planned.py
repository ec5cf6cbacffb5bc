"""Plans of tiny settings."""

import tiny

from loft_jax.data.facts import Facts
from loft_jax.planning import make_plan
from loft_jax.topology import Topology


def planned(topology, **settings):
    config, dataset = tiny.config(**settings), tiny.dataset()
    return make_plan(config, Topology.parse(topology), Facts.of(dataset), dataset, model=tiny.MODEL)
