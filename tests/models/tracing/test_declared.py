"""What tracing finds in the ResNets against what they declare."""

import time

import pytest

from loft_jax import create_model
from loft_jax.models.linen import LinenSource
from loft_jax.models.traced import TracedNetwork

NAMES = ("preresnet18", "preresnet20", "preresnet34", "resnet18", "resnet34")


@pytest.mark.parametrize("width", [None, 6])
@pytest.mark.parametrize(("stem", "size"), [("cifar", 32), ("imagenet", 64)])
@pytest.mark.parametrize("name", NAMES)
def test_tracing_finds_what_is_declared(name, stem, size, width):
    """In training and evaluation: discovery walks through both, and offers what holds in both."""
    model = create_model(name, 10, stem=stem, width=width)
    begin = time.process_time()
    network = TracedNetwork(LinenSource(model), (size, size, 3))
    traced = network.filter_groups()
    seconds = time.process_time() - begin
    assert [(group.width, dict(group.axes)) for group in traced] == [
        (group.width, dict(group.axes)) for group in model.filter_groups()
    ]
    # Alone it takes less than half of this.
    assert seconds < 4
    streams = [axis for axis in network.discovery.axes if axis.kind == "stream"]
    assert [axis.width for axis in streams] == [model.width * 2**stage for stage in range(len(model.blocks))]


def test_a_traced_group_is_named_by_its_first_layer():
    network = TracedNetwork(LinenSource(create_model("preresnet20", 10)), (32, 32, 3))
    assert [group.name for group in network.filter_groups()][:2] == ["stage1_block1/conv1", "stage1_block2/conv1"]
