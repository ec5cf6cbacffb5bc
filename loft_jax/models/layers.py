"""Layers that the networks share: convolutions and norms in the form that each platform runs fastest."""

from typing import Any

import flax.linen as nn

from loft_jax.models.convolution import convolve
from loft_jax.models.norm import BatchNorm

HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    features: int,
    size: int,
    stride: int = 1,
    *,
    dtype: Any,
    name: str,
    groups: int = 1,
    use_bias: bool = False,
    kernel_init: Any = HE_NORMAL,
) -> nn.Conv:
    """Make a convolution of size x size that keeps the length of an axis at stride 1."""
    # Padding is explicit because "SAME" pads strided convolutions on one side only, unlike the published networks.
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated_cls=lambda: convolve,
        name=name,
    )


def norm(
    train: bool, dtype: Any, name: str, *, relu: bool = True, running: bool = True, affine: bool = True
) -> BatchNorm:
    """Make a batch norm, with a ReLU after it, running statistics and parameters unless told otherwise."""
    return BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        relu=relu,
        running=running,
        affine=affine,
        name=name,
    )


def downsample(x: Any) -> Any:
    """Pool 3x3 windows at stride 2, as the networks for ImageNet do after their first convolution."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
