"""Independent subnet training: a perceptron split by its neurons, against a loop over separate perceptrons."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.reference_round import batches_of
from helpers.runs import assert_same_state
from helpers.tiny import Run, config, dataset, flat

from loft_jax.cost.compiled import wire_bytes
from loft_jax.devices.mesh import replicate
from loft_jax.filters import draw_partition
from loft_jax.loft.evaluate import Evaluator, NormEstimator
from loft_jax.loft.optimizer import learning_rate_schedule
from loft_jax.loft.state import State
from loft_jax.models.families.mlp import MLP, make_mlp
from loft_jax.models.linen import LinenSource
from loft_jax.models.traced import TracedNetwork
from loft_jax.randomness import Purpose, key_for

WIDTH = 16
# Where a worker's neurons lie: of the first, and of the second hidden layer.
AXES = {
    "params/dense1/kernel": (None, 0),
    "params/dense2/kernel": (0, 1),
    "params/head/kernel": (1, None),
    **{f"params/norm{layer + 1}/{name}": (layer,) for layer in (0, 1) for name in ("scale", "bias")},
}


def network(width=WIDTH, **options):
    module = make_mlp(3, width, hidden_layers=2, norm="batch", head_norm=True, **options)
    return TracedNetwork(LinenSource(module), dataset().image_shape)


def run(fused=None, **settings):
    own = {"optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0, "optimizer__schedule": "constant"}
    return Run(config(loft__momentum="reset", **own, **settings), fused=fused, model=network())


def plain_step(settings, module):
    """A step of SGD without momentum, and nothing else."""
    sgd = optax.sgd(learning_rate_schedule(settings))

    @jax.jit
    def step(params, state, images, labels):
        def loss_of(params):
            logits = module.apply({"params": params}, images, train=True)
            return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 3)).mean()

        updates, state = sgd.update(jax.grad(loss_of)(params), state, params)
        return optax.apply_updates(params, updates), state

    return sgd.init, step


@pytest.mark.parametrize("sync", ["psum", "exchange"])
def test_a_round_equals_a_loop_over_separate_perceptrons(sync):
    ist = run(loft__sync=sync)
    settings, before = ist.config, flatten(jax.device_get(ist.round.full(ist.state).params))
    after = flatten(ist.rounds(1)["params"])
    owned = draw_partition(key_for(0, Purpose.PARTITION, 0), ist.round.groups, 4)
    owned = [np.asarray(owned[name]) for name in ("dense1", "dense2")]
    module = MLP(3, (WIDTH // 4, WIDTH // 4), running=False, head_norm=True)
    initialise, step = plain_step(settings, module)
    expected = {path: leaf.copy() for path, leaf in before.items()}
    for worker in range(4):
        mine = {path: block(path, leaf, owned, worker) for path, leaf in before.items()}
        params = nest({path: before[path][index] for path, index in mine.items()})
        state = initialise(params)
        for images, labels in batches_of(settings, worker, 0):
            params, state = step(params, state, images, labels)
        for path, leaf in flatten(params).items():
            expected[path][mine[path]] = leaf
    assert after.keys() == expected.keys() == AXES.keys()
    for path, leaf in after.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=2e-5, atol=2e-6, err_msg=path)
    kernel = "params/dense2/kernel"
    changed = after[kernel] != before[kernel]
    assert 0.9 / 4 < changed.mean() <= 1 / 4, "only the blocks of the workers are trained"


def flatten(params):
    return {
        "params/" + "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def nest(leaves):
    tree = {}
    for path, leaf in leaves.items():
        _, layer, name = path.split("/")
        tree.setdefault(layer, {})[name] = jnp.asarray(leaf)
    return tree


def block(path, leaf, owned, worker):
    layers = AXES[path]
    return np.ix_(
        *(
            np.arange(n) if layer is None else np.flatnonzero(owned[layer][worker])
            for layer, n in zip(layers, leaf.shape, strict=True)
        )
    )


def test_one_worker_is_bit_equal_to_plain_sgd():
    one = run(loft__workers=1)
    params = jax.device_get(one.state.params)
    initialise, step = plain_step(one.config, network())
    state = initialise(params)
    for round_number in range(2):
        for images, labels in batches_of(one.config, 0, round_number):
            params, state = step(params, state, images, labels)
    expected = flat(params)
    for path, leaf in flat(one.rounds(2)["params"]).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_the_local_steps_of_a_network_without_statistics_may_be_one_program():
    one, other = (flat(run(fused).rounds(1)["params"]) for fused in (True, False))
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, other[path], rtol=2e-5, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("sync", ["psum", "exchange"])
def test_what_a_sync_is_said_to_move_is_what_the_compiled_program_moves(sync):
    ist = run(loft__sync=sync)
    sync_program = {"sync": ist.round.programs(ist.full)["sync"]}
    assert wire_bytes(sync_program, 4) == sync_program["sync"].traffic.wire


def test_of_a_kernel_between_two_split_layers_the_workers_send_their_blocks():
    """Of the numbers: the other variables, the kernel's blocks, and two groups' int32 that say who owns what."""
    ist, local = run(), run(loft__partition="none")
    whole, split = (each.round.programs(each.full)["sync"].traffic.payloads for each in (local, ist))
    kernel = WIDTH * WIDTH
    assert whole["all-reduce"] - split["all-reduce"] == 4 * (kernel - kernel // 4 - 2 * 4 * WIDTH)


def test_norms_without_statistics_have_none_and_evaluation_uses_those_of_the_batch():
    ist = run()
    assert ist.full.batch_stats == {}
    variables = ist.round.full(ist.state).variables
    estimate = NormEstimator(ist.config, ist.model, ist.dataset, ist.mesh, ist.images)
    assert estimate(variables) is variables, "there is nothing to estimate"
    found = Evaluator(ist.config, ist.model, ist.dataset, ist.mesh, ist.images)(variables)
    # 22 images on 4 devices: 6 each, and the last two are there again.
    order = np.resize(np.arange(22), 24)
    images, labels = ist.dataset.test_images[order], ist.dataset.test_labels[order]
    mean, std = ist.dataset.channel_statistics
    logits = [ist.model.apply(variables, (images[i : i + 6].astype(np.float32) - mean) / std) for i in (0, 6, 12, 18)]
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.concatenate(logits), labels)[:22]
    np.testing.assert_allclose(found["test/loss"], losses.mean(), rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("sync", ["psum", "exchange"])
def test_a_perceptron_shares_nothing_and_trains_with_small_messages(sync):
    """What is kept of shared variables is empty, and a checkpoint holds nothing of it."""
    small = run(loft__wire="int8", loft__sync=sync)
    small.rounds(2)
    state = jax.device_get(small.round.full(small.state))
    saved = state.checkpoint(state.variables)
    assert saved["training"]["beside"].keys() == {"errors"}
    small.state = small.round.place(replicate(State.from_checkpoint(saved), small.mesh))
    assert_same_state(jax.device_get(small.round.full(small.state)), state)
    small.rounds(1)
    assert np.isfinite(small.loss)
