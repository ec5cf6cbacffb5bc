"""Networks as users bring them: the file's path and a name after a colon are their `model.name`."""

import flax.linen as nn
from flax import nnx


class Small(nn.Module):
    """Linen: a flatten before the dense layer, dropout, batch norm."""

    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, x, train: bool = False):
        for i in range(2):
            x = nn.Conv(self.width * 2**i, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(16)(x.reshape(len(x), -1)))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class Listed(nnx.Module):
    """NNX: lists of layers, and the same architecture as `Small`."""

    def __init__(self, num_classes, rngs, width=8):
        self.convs = nnx.List([nnx.Conv(1, width, (3, 3), rngs=rngs), nnx.Conv(width, 2 * width, (3, 3), rngs=rngs)])
        self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs), nnx.BatchNorm(2 * width, rngs=rngs)])
        self.hidden = nnx.Linear(8 * width, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), (2, 2), (2, 2))
        return self.head(self.dropout(nnx.relu(self.hidden(x.reshape(len(x), -1)))))


class Plain(nn.Module):
    """Linen without norms, without dropout, without an argument for training."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(16)(x)))


class Summed(nn.Module):
    """Nothing of it can be split: the filters of its only hidden layer are averaged."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        hidden = nn.LayerNorm()(nn.Dense(16)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(hidden)


class TwoInputs(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, y):
        return nn.Dense(self.num_classes)(x + y)


def no_module(num_classes):
    return [num_classes]


def no_classes(width):
    return Plain(width)


def without_rngs(num_classes):
    return Listed(num_classes, nnx.Rngs(0))


def feature_maps(num_classes):
    return nn.Conv(num_classes, (3, 3))


def failing(num_classes):
    raise RuntimeError("the disk is on fire")


not_callable = 3
