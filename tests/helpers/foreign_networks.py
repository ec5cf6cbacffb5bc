"""Networks as users write them, without a thought of filter groups."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class NnxVGG(nnx.Module):
    """NNX: lists of layers, batch norms, a flatten before its dense layers."""

    def __init__(self, num_classes, rngs, widths=(8, 12), size=8):
        sizes = (3, *widths)
        pairs = list(zip(sizes[:-1], widths, strict=True))
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in pairs])
        self.norms = nnx.List([nnx.BatchNorm(b, rngs=rngs) for b in widths])
        positions = (size // 2 ** len(widths)) ** 2
        self.hidden = nnx.Linear(positions * widths[-1], 16, rngs=rngs)
        self.head = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), (2, 2), (2, 2))
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))


class UserDenseNet(nn.Module):
    """Linen: a list of all maps so far, concatenated anew in each layer, and a flatten behind a concatenation."""

    num_classes: int
    growth: int = 8
    layers: int = 3

    @nn.compact
    def __call__(self, x, train: bool):
        maps = [nn.Conv(16, (3, 3), use_bias=False)(x)]
        for _ in range(self.layers):
            x = nn.BatchNorm(use_running_average=not train)(jnp.concatenate(maps, axis=-1))
            maps.append(nn.Conv(self.growth, (3, 3))(nn.relu(x)))
        x = nn.avg_pool(nn.relu(jnp.concatenate(maps, axis=-1)), (4, 4), (4, 4))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class SqueezeExcite(nn.Module):
    """Linen: an expansion, a depthwise convolution, squeeze-and-excite with a sigmoid, and a projection;
    then a block with the depthwise convolution alone.
    """

    num_classes: int
    expanded: int = 24

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        y = nn.Conv(self.expanded, (1, 1), use_bias=False, name="expand")(x)
        y = nn.silu(nn.BatchNorm(use_running_average=not train, name="expand_norm")(y))
        y = nn.Conv(self.expanded, (3, 3), feature_group_count=self.expanded, name="depthwise")(y)
        y = nn.silu(nn.BatchNorm(use_running_average=not train, name="depthwise_norm")(y))
        gate = nn.relu(nn.Conv(8, (1, 1), name="squeeze")(y.mean(axis=(1, 2), keepdims=True)))
        y = y * nn.sigmoid(nn.Conv(self.expanded, (1, 1), name="excite")(gate))
        x = x + nn.Conv(8, (1, 1), name="project")(y)
        y = nn.relu6(nn.Conv(self.expanded, (1, 1), name="expand2")(x))
        y = nn.Conv(self.expanded, (3, 3), feature_group_count=self.expanded, use_bias=False, name="depthwise2")(y)
        x = x + nn.Conv(8, (1, 1), name="project2")(nn.relu6(y))
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


class LayerNorms(nn.Module):
    """ConvNeXt's block: its norm runs over the channels; a learnt factor for each of them."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), strides=(4, 4), name="stem")(x)
        y = nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(x)
        y = nn.LayerNorm(name="norm")(y)
        y = nn.gelu(nn.Dense(32, name="up")(y))
        scale = self.param("scale", nn.initializers.constant(0.1), (8,))
        x = x + scale * nn.Dense(8, name="down")(y)
        return nn.Dense(self.num_classes, name="head")(nn.LayerNorm(name="last")(x.mean(axis=(1, 2))))


class GroupNorms(nn.Module):
    """What a group norm normalises stays whole; the layer behind it does not."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(num_groups=4, name="norm")(nn.Conv(16, (3, 3), name="first")(x)))
        x = nn.relu(nn.Conv(12, (3, 3), name="second")(x))
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


class Residual(nn.Module):
    """A stream that three layers write, with dropout inside its blocks."""

    num_classes: int
    rate: float = 0.3

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        for block in (1, 2):
            y = nn.relu(nn.Conv(12, (3, 3), name=f"inner{block}")(x))
            y = nn.Dropout(self.rate, deterministic=not train)(y)
            x = x + nn.Conv(8, (3, 3), name=f"outer{block}")(y)
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


def sequential(num_classes):
    """Layers without names, and functions between them."""
    return nn.Sequential(
        [
            nn.Conv(8, (3, 3)),
            nn.relu,
            lambda x: nn.max_pool(x, (2, 2), (2, 2)),
            nn.Conv(12, (3, 3)),
            nn.relu,
            lambda x: x.reshape(x.shape[0], -1),
            nn.Dense(16),
            nn.relu,
            nn.Dense(num_classes),
        ]
    )


class _ScannedBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.relu(nn.Conv(12, (3, 3), name="inner")(x))
        return x + nn.Conv(8, (3, 3), name="outer")(y), None


class Scanned(nn.Module):
    """Three blocks in `nn.scan`: their kernels lie in one array with an axis of blocks."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        blocks = nn.scan(_ScannedBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


class Transposed(nn.Module):
    """Down, and up again by transposed convolutions, one of them with its kernel stored the other way round."""

    num_classes: int

    @nn.compact
    def __call__(self, x, training: bool = False):
        x = nn.relu(nn.Conv(8, (3, 3), strides=(2, 2), name="down")(x))
        x = nn.relu(nn.ConvTranspose(12, (2, 2), strides=(2, 2), name="up")(x))
        x = nn.relu(nn.ConvTranspose(16, (3, 3), transpose_kernel=True, name="turned")(x))
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


class Attention(nn.Module):
    """A block of a vision transformer."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (4, 4), strides=(4, 4), name="patches")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + self.param("positions", nn.initializers.normal(0.1), (1, *x.shape[1:]))
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(nn.LayerNorm(name="norm1")(x))
        y = nn.gelu(nn.Dense(24, name="up")(nn.LayerNorm(name="norm2")(x)))
        x = x + nn.Dense(16, name="down")(y)
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=1))


class TwoAxes(nn.Module):
    """A layer that computes two axes of filters, both read by the next one."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.DenseGeneral((6, 8), name="pairs")(x.mean(axis=(1, 2))))
        x = nn.relu(nn.DenseGeneral(16, axis=(-2, -1), name="both")(x))
        return nn.Dense(self.num_classes, name="head")(x)


class Shared(nn.Module):
    """One layer called twice."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        inner, outer = nn.Conv(8, (3, 3), name="inner"), nn.Conv(3, (3, 3), name="outer")
        for _ in range(2):
            x = outer(nn.relu(inner(x)))
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


class Separate(nn.Module):
    """What cannot be split, each in a layer of its own."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        pieces = nn.Conv(8, (3, 3), name="pieces")(x)
        grouped = nn.Conv(8, (3, 3), feature_group_count=2, name="grouped")(pieces).mean(axis=(1, 2))
        x = nn.relu(nn.Conv(12, (3, 3), name="plain")(x)).mean(axis=(1, 2))
        heads = nn.Dense(16, name="heads")(x).reshape(-1, 4, 4)
        one, other = jnp.split(nn.Dense(16, name="halves")(x), 2, axis=-1)
        weights = jax.nn.softmax(nn.Dense(8, name="weights")(x))
        ordered = jnp.sort(nn.Dense(8, name="ordered")(x), axis=-1)
        normed = nn.LayerNorm(name="norm")(nn.Dense(8, name="normed")(x))
        padded = jnp.pad(nn.Dense(8, name="padded")(x), ((0, 0), (0, 2)))
        strided = nn.Dense(8, name="strided")(x)[:, ::2]
        looped = jax.lax.while_loop(lambda y: y.sum() > 1e9, lambda y: y / 2, nn.Dense(8, name="looped")(x))
        scaled = nn.relu(nn.Dense(8, name="scaled")(x))
        scaled = nn.Dense(4, name="reader")(scaled * scaled.shape[-1] ** -0.5)
        y = [heads.mean(axis=1), one * other, weights, ordered, normed, padded, strided, looped, scaled, grouped]
        return nn.Dense(self.num_classes, name="head")(jnp.concatenate(y, axis=-1))
