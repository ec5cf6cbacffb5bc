"""Networks of users' own: what is found, what is refused, and with which words."""

import jax
import jax.numpy as jnp
import pytest
from helpers import TESTS
from helpers.own_networks import Declared, Unfinished, residual

from loft_jax import explain_filter_groups, find_filter_groups
from loft_jax.config.config import Config
from loft_jax.errors import UserError
from loft_jax.models.linen import LinenSource
from loft_jax.models.loading import load_source
from loft_jax.models.nnx import NnxSource
from loft_jax.models.registry import make_model
from loft_jax.models.resnet import ResNet
from loft_jax.models.traced import TracedNetwork

FILE = f"{TESTS}/helpers/own_networks.py"


def model(name, image_shape=(8, 8, 1), **options):
    config = Config.model_validate({"model": {"name": f"{FILE}:{name}", "options": options}})
    return make_model(config, 10, image_shape)


def test_linen_and_nnx_are_told_apart_and_get_their_options():
    assert isinstance(load_source(f"{FILE}:Small", {}, 10), LinenSource)
    assert isinstance(load_source(f"{FILE}:Listed", {}, 10), NnxSource)
    assert isinstance(load_source("helpers.own_networks:Small", {}, 10), LinenSource)
    widths = [group.width for group in model("Listed", width=4).filter_groups()]
    assert widths == [4, 8, 16]


def test_equal_settings_give_equal_networks_and_others_do_not():
    """A network is a static argument of jit: equal ones share what is compiled."""
    for name in ("Small", "Listed"):
        assert model(name) == model(name)
        assert hash(model(name)) == hash(model(name))
        assert model(name) != model(name, width=4)


@pytest.mark.parametrize("name", ["Small", "Listed"])
def test_initialisation_depends_on_the_key_alone_and_logits_are_float32(name):
    network, images = model(name), jnp.ones((3, 8, 8, 1))
    one, same, other = (network.init(jax.random.key(seed), images) for seed in (0, 0, 1))
    leaves = [jax.tree.leaves(tree["params"]) for tree in (one, same, other)]
    assert all((a == b).all() for a, b in zip(leaves[0], leaves[1], strict=True))
    assert any((a != b).any() for a, b in zip(leaves[0], leaves[2], strict=True))
    narrow = network.clone(dtype=jnp.bfloat16)
    logits, updated = narrow.apply(one, images, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    assert (logits.shape, logits.dtype) == ((3, 10), jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updated))


@pytest.mark.parametrize("name", ["Small", "Listed"])
def test_dropout_draws_in_training_alone_and_by_its_key(name):
    network, images = model(name), jax.random.normal(jax.random.key(2), (3, 8, 8, 1))
    variables = network.init(jax.random.key(0), images)

    def trained(seed):
        return network.apply(variables, images, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(seed)})[
            0
        ]

    assert (trained(0) == trained(0)).all()
    assert (trained(0) != trained(1)).any()
    assert (network.apply(variables, images) == network.apply(variables, images)).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (f"{FILE}:Smal", {}, "has no callable Smal; did you mean Small?"),
        (f"{FILE}:not_callable", {}, "has no callable not_callable"),
        (f"{FILE}x.py:Small", {}, "no such file"),
        ("no_such_module:Small", {}, "No module named 'no_such_module'; give a module that can be imported"),
        (f"{FILE}:Small", {"widht": 3}, "does not take model.options.widht; did you mean width?"),
        (f"{FILE}:no_classes", {"width": 3}, "does not take num_classes, the number of logits; it takes width"),
        (f"{FILE}:no_module", {}, "returns list; a callable that takes num_classes must return a flax.linen.Module"),
        (f"{FILE}:without_rngs", {}, "returns an NNX module, so it must take rngs"),
        (f"{FILE}:failing", {}, "called with num_classes=10 it fails: RuntimeError: the disk is on fire"),
        (f"{FILE}:TwoInputs", {}, "cannot be called with a batch of 8x8x1 images of digits: TypeError: .*'y'"),
        (
            f"{FILE}:Averaged",
            {},
            "keeps average in batch_stats, which cannot be estimated again .* only mean and var can",
        ),
        (f"{FILE}:Unranked", {}, "its filters cannot be ranked: filter group 'first' declares 'params/first/weight'"),
        (f"{FILE}:feature_maps", {}, r"returns an array of shape \(2, 8, 8, 10\) for 2 examples"),
    ],
)
def test_what_is_no_network_is_refused(name, options, message):
    config = Config.model_validate({"model": {"name": name, "options": options}})
    with pytest.raises(UserError, match=message) as refusal:
        make_model(config, 10, (8, 8, 1))
    assert str(refusal.value).startswith(f"model.name={name}: ")


def test_a_module_that_declares_its_groups_is_used_as_it_is_and_any_other_is_traced():
    network = model("residual")
    assert isinstance(network, ResNet)
    assert network == residual(10).clone(dtype=jnp.dtype("float32"))
    config = Config.model_validate({"model": {"name": f"{FILE}:Declared"}, "precision": "bfloat16"})
    assert make_model(config, 10, (8, 8, 1)).dtype == jnp.bfloat16
    for name in ("Undeclared", "Unsaid"):
        assert isinstance(model(name), TracedNetwork)


def test_what_a_module_declares_is_what_it_is_asked_for():
    images = jnp.zeros((1, 8, 8, 1))
    groups = find_filter_groups(Declared(num_classes=10), images)
    assert groups == Declared(num_classes=10).filter_groups()
    assert str(explain_filter_groups(Declared(num_classes=10), images)).endswith(
        "2 filter groups, declared by the network; 1 layers are left whole"
    )
    with pytest.raises(ValueError, match=r"has no left_whole, with_branch_scales, with_norms \(what it needs: "):
        find_filter_groups(Unfinished(num_classes=10), images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Unfinished", "has no left_whole, with_branch_scales, with_norms (what it needs: loft_jax/models/network.py)"),
        ("Untyped", "has no field dtype, the dtype of its computation (what"),
        ("Unhashable", "keeps sizes in lists or dicts, which cannot be hashed (use tuples and FrozenDict) (what it"),
        ("DeclaredNnx", "is an NNX module, and only Linen modules can declare their groups (what"),
        ("Misnamed", "has no 'params/frist/kernel', which filter group 'first' touches"),
        ("Miscounted", "declares what is not so: filter group 'first' has 31 filters along axis 1 of 'params/first/"),
        (
            "Forgetful",
            "makes (16, 16) of 'params/second/kernel' when with_widths asks for half of the filters of every",
        ),
        ("Rounded", "returns bfloat16 (2, 10) for 2 examples; must return float32 logits"),
    ],
)
def test_a_declaration_that_does_not_hold_is_refused(name, message):
    with pytest.raises(UserError) as refusal:
        model(name)
    assert str(refusal.value).startswith(f"model.name={FILE}:{name}: its declares_groups is true, but it {message}")


def test_code_that_fails_when_it_is_run_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    with pytest.raises(UserError, match=r"running .*broken\.py failed: ModuleNotFoundError: .*no_such_library"):
        load_source(f"{tmp_path}/broken.py:Net", {}, 10)
