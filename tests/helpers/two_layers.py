"""A network of its own, to which nothing but its declared filter groups is known."""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from loft_jax import FilterGroup

NORM_VARIABLES = [("params", "scale"), ("params", "bias"), ("batch_stats", "mean"), ("batch_stats", "var")]


class TwoLayers(nn.Module):
    """A plain CNN: kernel "two" belongs to two groups, the outputs of one and the inputs of the next."""

    widths: FrozenDict = FrozenDict(one=4, two=8)
    dtype: jnp.dtype = jnp.float32
    declares_groups: ClassVar[bool] = True
    norm_axis: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.widths["one"], (3, 3), name="one")(x)
        x = nn.relu(nn.BatchNorm(not train, name="norm")(x))
        x = nn.relu(nn.Conv(self.widths["two"], (3, 3), name="two")(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))

    def filter_groups(self):
        norm = {f"{kind}/norm/{name}": 0 for kind, name in NORM_VARIABLES}
        one = {"params/one/kernel": 3, "params/one/bias": 0, "params/two/kernel": 2} | norm
        two = {"params/two/kernel": 3, "params/two/bias": 0, "params/head/kernel": 0}
        return FilterGroup("one", 4, one, True), FilterGroup("two", 8, two, True)

    def with_norms(self, *, axis=None, momentum=None):
        return self.clone(norm_axis=axis)

    def with_widths(self, widths):
        return self.clone(widths=FrozenDict({**self.widths, **widths}))
