"""LoFT-4 on networks whose groups are traced: a round against a loop over sub-networks, and other ways of it."""

import numpy as np
import pytest
from helpers import foreign_networks
from helpers.foreign_networks import NnxVGG
from helpers.reference_round import assert_close, round_by_a_loop
from helpers.tiny import Run, config, flat

from loft_jax.data.dataset import Dataset
from loft_jax.loft.split import split_groups
from loft_jax.models.families.bottleneck import BottleneckResNet
from loft_jax.models.families.cifar_resnet import CifarResNet
from loft_jax.models.families.convs import ConvNet
from loft_jax.models.families.densenet import DenseNet
from loft_jax.models.families.mlp import MLP, LeNet300
from loft_jax.models.families.mobilenet import MobileNetV2
from loft_jax.models.families.vgg import VGG
from loft_jax.models.families.wideresnet import WideResNet
from loft_jax.models.linen import LinenSource
from loft_jax.models.nnx import NnxSource
from loft_jax.models.traced import TracedNetwork

# A family each, not deeper than it needs to be to have every kind of layer.
FAMILIES = {
    "vgg": VGG((1, 2), 3, width=8),
    "cifar_resnet": CifarResNet(1, 3, width=4),
    "bottleneck": BottleneckResNet((1, 2), 3, width=4),
    "wideresnet": WideResNet(1, 3, width=8),
    "mobilenet": MobileNetV2(3, width=8, stages=((1, 16, 1, 1), (6, 32, 2, 2))),
    "densenet": DenseNet((2, 2), 3, width=8),
    "mlp": MLP(3, (16, 8)),
    "lenet300": LeNet300(3, width=24),
    "conv4": ConvNet(2, 3, width=4),
}
FOREIGN = ("NnxVGG", "UserDenseNet", "SqueezeExcite", "Scanned")


def vgg(rngs):
    return NnxVGG(3, rngs)


def network(name):
    shape = (8, 8, 3)
    if name == "NnxVGG":
        return TracedNetwork(NnxSource(vgg, name), shape)
    if name in FAMILIES:
        return TracedNetwork(LinenSource(FAMILIES[name]), shape)
    return TracedNetwork(LinenSource(getattr(foreign_networks, name)(3)), shape)


def dataset():
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, size=n).astype(np.int32) for n in (40, 8)]
    images = [
        np.clip(rng.normal(100 + 40 * y[:, None, None, None], 30, (len(y), 8, 8, 3)), 0, 255).astype(np.uint8)
        for y in labels
    ]
    return Dataset("tiny", images[0], labels[0], images[1], labels[1], num_classes=3, crop_padding=1, flip=True)


def run(name, **settings):
    # Without norms a network diverges at the rate of one with norms.
    settings = config(optimizer__learning_rate=0.01, **settings)
    return Run(settings, model=network(name), dataset=dataset())


def marked(quick=(), full=(*FAMILIES, *FOREIGN)):
    """All networks: those that are quick by default, those of the full run, and the others of campaigns."""
    marks = dict.fromkeys((*FAMILIES, *FOREIGN), (pytest.mark.campaign,))
    marks |= dict.fromkeys(full, (pytest.mark.full,)) | dict.fromkeys(quick, ())
    return [pytest.param(name, marks=some) for name, some in marks.items()]


# One of each kind: with a flatten, with concatenations, with depthwise convolutions.
_KINDS = ("NnxVGG", "densenet", "SqueezeExcite")


@pytest.mark.parametrize("name", marked(quick=["lenet300"]))
def test_a_round_equals_a_loop_over_separate_sub_networks(name):
    first = run(name)
    model = first.model
    assert sum(group.partitioned for group in split_groups(model, first.config)) >= 2 or name == "Scanned"
    start = first.rounds(1)  # A second round starts from momentum and statistics that are not zero.
    expected, loss = round_by_a_loop(first.config, start, 1, model, dataset())
    assert_close(first.rounds(1), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(float(first.loss), loss, rtol=1e-5)


@pytest.mark.parametrize("name", marked(quick=["lenet300"], full=_KINDS))
def test_psum_equals_exchange(name):
    one, other = (run(name, loft__sync=sync).rounds(1) for sync in ("psum", "exchange"))
    for path, leaf in flat(one).items():
        np.testing.assert_allclose(leaf, flat(other)[path], rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", marked(full=("lenet300", *_KINDS)))
def test_a_round_is_the_same_on_one_two_and_four_devices(name):
    states = {devices: flat(run(name, mesh__worker=devices).rounds(1)) for devices in (1, 2, 4)}
    for devices in (1, 2):
        for path, leaf in states[4].items():
            np.testing.assert_allclose(leaf, states[devices][path], rtol=0, atol=1e-6, err_msg=path)


def test_what_a_worker_holds_of_a_kernel_behind_a_flatten():
    """The reference of these tests, on one kernel: by hand."""
    from helpers.reference_round import _kept_entries

    groups = [group for group in network("NnxVGG").filter_groups() if group.name == "convs/1"]
    owned = {"convs/1": np.array([0, 5, 11])}
    rows, columns = _kept_entries(groups, "params/hidden/kernel", (48, 16), owned)
    assert rows.tolist() == [0, 5, 11, 12, 17, 23, 24, 29, 35, 36, 41, 47]
    assert columns.tolist() == list(range(16))
