"""Evaluation counts every example once; norm statistics are those of the batches they are estimated on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny import MODEL, Run, config, flat

from loft_jax.data.batches import Augmentation, normalise
from loft_jax.loft.evaluate import Evaluator, NormEstimator
from loft_jax.loft.images import make_images
from loft_jax.randomness import Purpose, key_for


def variables_of(run):
    return run.state.variables


@pytest.mark.parametrize(
    "devices", [pytest.param(1, marks=pytest.mark.full), 2, pytest.param(4, marks=pytest.mark.full)]
)
@pytest.mark.parametrize("batch", [1, 4, 250])
def test_every_test_example_is_counted_once(devices, batch):
    run = Run(config(mesh__worker=devices, train__eval_batch_size=batch))
    data = run.dataset
    result = Evaluator(run.config, MODEL, data, run.mesh, run.images)(variables_of(run))
    logits = MODEL.apply(variables_of(run), normalise(jnp.asarray(data.test_images), *data.channel_statistics))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data.test_labels)
    assert result["test/accuracy"] == np.mean(np.argmax(np.asarray(logits), axis=-1) == data.test_labels)
    assert result["test/loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize("fused", [False, True], ids=["stepwise", "fused"])
@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.full), 4])
def test_norm_statistics_are_those_of_all_batches_pooled(devices, fused):
    settings = config(mesh__worker=devices, train__norm_batches=5)
    run = Run(settings)
    estimated = NormEstimator(settings, MODEL, run.dataset, run.mesh, run.images, fused=fused)(variables_of(run))
    # The first norm sees the stem's output, whatever the statistics of the others: pool its activations by hand.
    data, key = run.dataset, key_for(settings.seed, Purpose.NORM_STATISTICS)
    order = jnp.resize(jax.random.permutation(key, len(data.train_labels)), (5, 4))
    augmentation = Augmentation(data.crop_padding, data.flip)
    activations = []
    for number in range(5):
        drawn = augmentation.draw(key_for(settings.seed, Purpose.NORM_STATISTICS, number), 4)
        images = augmentation.apply(jnp.asarray(data.train_images)[order[number]], drawn)
        _, captured = MODEL.apply(
            variables_of(run),
            normalise(images, *data.channel_statistics),
            capture_intermediates=lambda module, _: module.name == "stem",
            mutable=["intermediates"],
        )
        activations.append(captured["intermediates"]["stem"]["__call__"][0])
    pooled = np.concatenate(activations).reshape(-1, 4)
    norm = estimated["batch_stats"]["stage1_block1"]["norm1"]
    np.testing.assert_allclose(norm["mean"], pooled.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm["var"], pooled.var(axis=0), rtol=1e-4, atol=1e-5)


def test_norm_statistics_do_not_depend_on_the_number_of_devices_and_leave_parameters_alone():
    results = {}
    for devices in (1, 4):
        run = Run(config(mesh__worker=devices, train__norm_batches=6))
        estimate = NormEstimator(run.config, MODEL, run.dataset, run.mesh, run.images)
        results[devices] = flat(estimate(variables_of(run)))
        params = flat({"params": run.state.params})
        for path in params:
            np.testing.assert_array_equal(results[devices][path], params[path])
    for path, leaf in results[1].items():
        np.testing.assert_allclose(leaf, results[4][path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_norm_batches_changes_the_statistics():
    run = Run(config())
    start = variables_of(run)
    one, other = (
        flat(NormEstimator(settings, MODEL, run.dataset, run.mesh, make_images(settings, run.dataset, run.mesh))(start))
        for settings in (config(train__norm_batches=2), config(train__norm_batches=3))
    )
    assert any((one[path] != other[path]).any() for path in one)
