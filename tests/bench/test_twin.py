"""The PyTorch twin is our network and our step: the same weights give the same logits, gradients and updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch twin needs the extra torch")

from helpers.tiny import flat  # noqa: E402

from loft_jax.bench.sides import Case, network_of  # noqa: E402
from loft_jax.bench.twin import Twin, TwinStep, from_torch, to_torch  # noqa: E402
from loft_jax.data import Dataset, Preparation  # noqa: E402
from loft_jax.loft import State, make_local_step  # noqa: E402

CASES = [
    Case("full step", "preresnet18", 4, 8, 1),
    Case("compact step", "preresnet18", 4, 8, 1),
    Case("compact step", "preresnet20", 8, 8, 1),
]
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, size=(64, 8, 8, 3), dtype=np.uint8)
LABELS = (np.arange(64) % 10).astype(np.int32)
DATASET = Dataset("small", IMAGES, LABELS, IMAGES, LABELS, num_classes=10, crop_padding=4, flip=True)


def random_variables(network):
    """Variables of which none has the value that it starts with: scales, biases and statistics differ by channel."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" else 10
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def assert_close(ours, theirs, tolerance=1e-4):
    """Every array is as the other's, to this share of its largest value."""
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        assert value.shape == theirs[path].shape, path
        np.testing.assert_allclose(theirs[path], value, rtol=0, atol=tolerance * np.abs(value).max(), err_msg=path)


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def network(case):
    return network_of(case)


@pytest.fixture(scope="module")
def variables(network):
    return random_variables(network)


def test_weights_convert_both_ways(network, variables):
    there = to_torch(variables)
    twin = Twin(network)
    missing, unexpected = twin.load_state_dict(there, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert unexpected == []
    back = flat(from_torch(twin.state_dict()))
    assert back.keys() == flat(variables).keys()
    for path, value in flat(variables).items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)


def test_logits_in_evaluation_are_equal(network, variables):
    images = np.random.default_rng(2).normal(size=(8, 8, 8, 3)).astype(np.float32)
    twin = Twin(network).eval()
    twin.load_state_dict(to_torch(variables), strict=False)
    with torch.no_grad():
        theirs = twin(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    assert_close({"logits": network.apply(variables, images)}, {"logits": theirs})


def test_logits_loss_and_gradients_of_training_are_equal(case, network, variables):
    """In float64, where no ReLU is on the other side of zero by rounding; our logits are float32."""
    images, labels = np.random.default_rng(2).normal(size=(8, 8, 8, 3)), LABELS[:8]
    step = make_local_step(case.config, network, DATASET)
    with jax.enable_x64(True):
        exact = network.clone(dtype=jnp.float64)
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)

        def loss_of(params):
            given = {"params": params, "batch_stats": wide["batch_stats"]}
            logits, _ = exact.apply(given, images, train=True, mutable=["batch_stats"])
            return step.mean_loss(logits, labels), logits

        (loss, logits), gradients = jax.device_get(jax.jit(jax.value_and_grad(loss_of, has_aux=True))(wide["params"]))

    twin = TwinStep(case.config, network, DATASET, variables)
    twin.network.double()
    batch = torch.tensor(images).permute(0, 3, 1, 2)
    theirs = twin.loss(batch, torch.tensor(labels).long())
    theirs.backward()
    of_twin = from_torch({name: value.grad for name, value in twin.network.named_parameters()})
    assert_close({"params": gradients}, of_twin, 1e-6)
    found = {"loss": theirs.detach().numpy(), "logits": twin.network(batch).detach().numpy()}
    assert_close({"loss": loss, "logits": logits}, found, 1e-6)


def test_prepared_batches_are_equal(case, network):
    preparation = Preparation.from_dataset(DATASET, augment=True)
    key, images = jax.random.key(3), DATASET.train_images
    ours = preparation.for_training(jnp.asarray(images), key)
    drawn = preparation.augmentation.draw(key, len(images))
    corner, mirror = (torch.tensor(np.asarray(drawn[name])) for name in ("corner", "mirror"))
    theirs = TwinStep(case.config, network, DATASET).prepare(torch.tensor(images), corner.long(), mirror)
    assert theirs.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1).numpy(), ours, rtol=0, atol=1e-6)


def test_three_updates_are_equal():
    """With momentum, with weight decay that is large enough to be seen on a norm, and with smoothed labels."""
    case = Case("compact step", "preresnet18", 4, 8, 1)
    network = network_of(case)
    variables = random_variables(network)
    optimizer = case.config.optimizer.model_copy(
        update={"learning_rate": 0.05, "weight_decay": 0.1, "schedule": "constant", "label_smoothing": 0.1}
    )
    config = case.config.model_copy(update={"optimizer": optimizer})
    step, twin = make_local_step(config, network, DATASET), TwinStep(config, network, DATASET, variables)
    program = jax.jit(
        jax.shard_map(
            step,
            mesh=jax.make_mesh((1, 1), ("worker", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2),
            in_specs=jax.sharding.PartitionSpec(),
            out_specs=jax.sharding.PartitionSpec(),
        )
    )
    state = State.from_collections(jax.tree.map(jnp.asarray, variables)).with_zero_moments(step.rule.moments)
    state = step.pack(state)
    for number in range(3):
        chosen = np.arange(8) + 8 * number
        images, labels, key = DATASET.train_images[chosen], DATASET.train_labels[chosen], jax.random.key(number)
        state, loss = program(state, images, labels, key, jnp.int32(number))
        drawn = step.preparation.augmentation.draw(key, 8)
        corner, mirror = (torch.tensor(np.asarray(drawn[name])) for name in ("corner", "mirror"))
        batch = twin.prepare(torch.tensor(images), corner.long(), mirror)
        theirs = twin.update(batch, torch.tensor(labels).long())
        assert theirs.item() == pytest.approx(float(loss), rel=1e-4)
    named, state = dict(twin.network.named_parameters()), state.unpack()
    assert_close({"params": state.params}, from_torch(named), 5e-4)
    momentum = {name: twin.optimizer.state[parameter]["momentum_buffer"] for name, parameter in named.items()}
    assert_close({"params": state.momentum}, from_torch(momentum), 2e-3)


def test_batches_are_drawn_as_ours(network, case):
    """An order has every image once; crops and mirrorings are spread over all that there are."""
    step = TwinStep(case.config, network, DATASET)
    order, other = step.draw_order(), step.draw_order()
    assert sorted(order.tolist()) == list(range(64))
    assert not torch.equal(order, other)
    corner, mirror = step._draw(4000)
    assert corner.shape == (4000, 2)
    assert set(corner.flatten().tolist()) == set(range(9))
    assert 0.45 < mirror.float().mean().item() < 0.55


def test_a_run_of_the_twin_trains(case, network):
    step = TwinStep(case.config, network, DATASET)
    before = [parameter.clone() for parameter in step.network.parameters()]
    step.run(step.draw_order(), 2)
    assert all(not torch.equal(a, b) for a, b in zip(before, step.network.parameters(), strict=True))
