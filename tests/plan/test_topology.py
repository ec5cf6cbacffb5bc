"""Names of hardware that is planned for, and the devices behind them."""

import importlib.util

import pytest
from helpers.settings_helpers import refusal

from loft_jax.plan.topology import Topology

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")

SLICES = "slices of v5e are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16 chips; try v5e:"
KINDS = "is none of v4, v5e, v5p, v6e, h100, h200, a100, cpu; "
CARDS = "must be h100:N, 1 to 8 cards of one host, or h100:NxHOSTS, N cards of each of up to 128 hosts; try h100:"
WRONG_TOPOLOGIES = {
    "v5x:4x4": f"'v5x' {KINDS}did you mean v5p?",
    "b200:1": f"'b200' {KINDS}did you mean h200?",
    "l40s:8": f"'l40s' {KINDS}try h100:8, v5e:4x4 or cpu:4",
    "h100": CARDS + "8",
    "h100:0": CARDS + "1",
    "h100:9": CARDS + "8x2",
    "h100:8x0": CARDS + "8",
    "h100:8x129": CARDS + "8x128",
    "h100:16x4": CARDS + "8x4",
    "h100:2x2x2": CARDS + "8",
    "h100:-1": CARDS + "8",
    "v5e:4by4": SLICES + "4x4",
    "v5e:0x4": SLICES + "1x1",
    "v5e:4x2": SLICES + "2x4",
    "v5e:3x5": SLICES + "4x4",
    "v5e:16x32": SLICES + "16x16",
    "v5e": SLICES + "4x4",
    "v4:4x4": "a slice of v4 has three sides of chips, at most 4,096 in all; try v4:2x2x2",
    "v5p:2x0x2": "a slice of v5p has three sides of chips, at most 6,144 in all; try v5p:2x2x2",
    "cpu:0": "must be cpu:N, 1 to 1024 devices; try cpu:1",
    "cpu:x": "must be cpu:N, 1 to 1024 devices; try cpu:4",
    "cpu:-2": "must be cpu:N, 1 to 1024 devices; try cpu:4",
    "cpu:5000": "must be cpu:N, 1 to 1024 devices; try cpu:1024",
}


@pytest.mark.parametrize("name", WRONG_TOPOLOGIES)
def test_a_topology_that_is_none_is_refused(name):
    assert refusal(Topology.parse, name) == f"--topology {name}: {WRONG_TOPOLOGIES[name]}"


@pytest.mark.parametrize(("name", "sides"), [("h100:8", (1, 8)), ("h200:4x2", (2, 4)), ("a100:1x1", (1, 1))])
def test_cards_are_counted_host_by_host(name, sides):
    topology = Topology.parse(name)
    assert (topology.sides, topology.hosts, topology.size) == (sides, sides[0], sides[0] * sides[1])
    assert topology.platform == "cuda"


def test_without_libtpu_a_tpu_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refusal(Topology.parse("v5e:4x4").devices)
    assert "pip install 'loft_jax[tpu]'" in message
    assert message.endswith("try --topology cpu:16")


@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x2", "v6e:2x4"])
def test_a_device_of_a_slice_is_a_chip(name):
    topology = Topology.parse(name)
    assert len(topology.devices()) == topology.size


@needs_libtpu
def test_a_slice_that_libtpu_does_not_have_is_refused():
    message = refusal(Topology.parse("v4:3x5x1").devices)
    assert message.startswith("--topology v4:3x5x1: libtpu has no such slice (")
    assert message.endswith("; try v4:4x6x1")
