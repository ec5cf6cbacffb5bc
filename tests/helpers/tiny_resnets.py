"""Tiny residual networks for tests of the models, and what they compute."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from loft_jax.models.resnet import ResNet

IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 3)), jnp.float32)


def variable_shapes(model, size=32):
    """Shapes and dtypes of the variables; computes nothing."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def tiny(preactivation, **changes):
    """Two stages, so with every kind of block, and filled variables: no scale is 1, no bias or mean 0."""
    model = ResNet(blocks=(1, 2), num_classes=3, width=4, preactivation=preactivation, **changes)
    rng = np.random.default_rng(0)
    fill = {"scale": (0.5, 1.5), "bias": (-1, 1), "mean": (-1, 1), "var": (0.5, 2), "kernel": (-0.5, 0.5)}
    flat = {
        path: jnp.asarray(rng.uniform(*fill[path.split("/")[-1]], leaf.shape), leaf.dtype)
        for path, leaf in flatten_dict(variable_shapes(model, 8), sep="/").items()
    }
    return model, unflatten_dict(flat, sep="/")


def feature_maps(model, variables, images):
    """Shape and dtype of the logits and of what each module returns; computes nothing."""
    apply = partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    output, state = jax.eval_shape(apply, variables, images)
    return output, state["intermediates"]


def logits(model, variables, images=IMAGES):
    return np.asarray(jax.jit(model.apply)(variables, images))


def trained(model, variables, images=IMAGES):
    """Logits under training, and the norm statistics after it."""
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=True, mutable=["batch_stats"]))
    return apply(variables, images)
