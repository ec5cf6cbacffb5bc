"""Streamed data: the same indices, labels and pixels as from the device, whoever reads them, and from any round on."""

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers import CONFIGS
from helpers.prepared import load, photographs, prepare, tiny_content
from helpers.runs import assert_same_state, opened
from helpers.settings_helpers import parse
from helpers.tiny import MODEL, Run, config, flat

from loft_jax.config.config import Config
from loft_jax.data.batches import worker_order
from loft_jax.data.facts import Facts
from loft_jax.data.streaming.schedule import TrainingSchedule
from loft_jax.devices.mesh import make_mesh
from loft_jax.errors import UserError
from loft_jax.loft.evaluate import Evaluator, NormEstimator
from loft_jax.loft.images import make_images
from loft_jax.loft.round import Round
from loft_jax.loft.state import initial_state
from loft_jax.randomness import Purpose, key_for
from loft_jax.storage.checkpoints import read_state
from loft_jax.train.experiment import Experiment
from loft_jax.train.overview import print_setup
from loft_jax.train.trainer import Trainer

SPLITS = (("train", 40), ("test", 22))


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    """A directory with images of one size: 40 to train and 22 to test on."""
    directory = tmp_path_factory.mktemp("uniform")
    prepare(directory, tiny_content(splits=SPLITS, shape=(6, 5, 3)), shape=(6, 5, 3))
    return directory


@pytest.mark.parametrize(
    ("split", "mesh"),
    [
        ("disjoint", {"mesh__worker": 2}),
        pytest.param("shared", {"mesh__worker": 2, "mesh__data": 2}, marks=pytest.mark.full),
    ],
    ids=["two workers a device", "two devices a worker"],
)
def test_a_streamed_run_is_bit_equal_to_one_from_the_device(uniform, split, mesh):
    settings = config(data__split=split, train__rounds=4, **mesh)
    results = []
    for loading in ("device", "stream"):
        run = Run(settings, dataset=load("tiny_images", uniform, loading=loading, readers=0))
        state = flat(run.rounds(4))
        run.images.close()
        results.append(state | {"loss": np.asarray(run.loss)})
    for path, leaf in results[0].items():
        np.testing.assert_array_equal(leaf, results[1][path], err_msg=path)


def test_norm_statistics_and_evaluation_are_those_from_the_device(uniform):
    settings = config(train__norm_batches=5, train__eval_batch_size=4)
    results = []
    for loading in ("device", "stream"):
        run = Run(settings, dataset=load("tiny_images", uniform, loading=loading, readers=0))
        estimated = NormEstimator(settings, run.model, run.dataset, run.mesh, run.images)(run.state.variables)
        test = Evaluator(settings, run.model, run.dataset, run.mesh, run.images)
        results.append(flat(estimated) | test(estimated))
    for path, leaf in results[0].items():
        np.testing.assert_array_equal(leaf, results[1][path], err_msg=path)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """JPEGs of mixed sizes, stored as ImageNet is, whose test images have no labels."""
    directory, sizes = tmp_path_factory.mktemp("imagenet"), {"train": 90, "validation": 11, "test": 3}
    content = {split: photographs(count, seed, 1000) for seed, (split, count) in enumerate(sizes.items())}
    content["test"] = (content["test"][0], [-1] * 3)
    label = tfds.features.ClassLabel(num_classes=1000)
    prepare(directory, content, version="5.1.0", shape=(None, None, 3), label=label, name="imagenet2012")
    return directory


def test_the_imagenet_configs_differ_in_their_number_of_workers_alone():
    configs = [parse("--config", CONFIGS / f"imagenet_preresnet18_{kind}.yaml") for kind in ("loft4", "loft2", "sgd")]
    assert [config.loft.workers for config in configs] == [4, 2, 1]
    loft = configs[0].loft
    assert len({config.model_copy(update={"loft": loft}).hash() for config in configs}) == 1


@pytest.mark.full
def test_an_imagenet_config_runs_on_streamed_data_and_resumes_to_the_bit(imagenet, tmp_path, capsys):
    small = {"data.data_dir": imagenet, "data.batch_size": 4, "data.image_size": 32, "data.readers": 0}
    small |= {"model.width": 2, "loft.local_steps": 2, "train.rounds": 2, "train.norm_batches": 2}
    small |= {"train.checkpoint_every": 1, "mesh.cpu_devices": 4}
    options = [part for key, value in small.items() for part in (f"--{key}", value)]
    settings = parse("--config", CONFIGS / "imagenet_preresnet18_loft4.yaml", *options)
    experiment = Experiment.build(settings)
    print_setup(experiment)
    said = capsys.readouterr().out
    assert "imagenet2012: 90 training and 11 test images, 32x32x3, streamed by" in said
    assert "warning   optimizer.warmup_steps=2500 is all of the run's 4 local steps" in said

    def trained(path, *rounds):
        directory = opened(tmp_path / path, settings)
        for count in rounds:
            with Trainer(experiment, directory) as trainer:
                trainer.start()
                for _ in range(count):
                    row = trainer.train_one_round()
        directory.close()
        return row, read_state(directory.checkpoints, 2)

    (row, undisturbed), (_, resumed) = trained("undisturbed", 2), trained("resumed", 1, 1)
    assert np.isfinite([row["train/loss"], row["test/loss"]]).all()
    assert_same_state(undisturbed, resumed)


def test_what_streamed_data_do_not_go_with_is_refused(uniform):
    data = load("tiny_images", uniform, loading="stream")
    settings = Config(gpipe={"stages": 2}, data={"name": "tiny_images", "loading": "stream"}, mesh={"cpu_devices": 4})
    with pytest.raises(UserError, match=r"gpipe\.stages=2: .* tiny_images is streamed \(data\.loading=stream\)"):
        Experiment.build(settings, dataset=data)


@pytest.mark.parametrize("data", [1, 2])
def test_a_streamed_round_is_lowered_from_facts_alone_and_a_step_takes_its_part_of_one_batch(data):
    settings = config(mesh__worker=2, mesh__data=data)
    stand_in, mesh = Facts((6, 5, 3), 3, 10**6, 10**4, streamed=True).placeholder(), make_mesh(settings)
    images = make_images(settings, stand_in, mesh, shapes_only=True)
    round_ = Round(settings, MODEL, stand_in, mesh, images)
    full = jax.eval_shape(lambda: initial_state(MODEL, settings, (6, 5, 3)))
    lowered = {name: program.lower() for name, program in round_.programs(full).items()}
    assert set(lowered) == {"begin", "step", "sync"}
    fed = jax.tree.leaves(lowered["step"].in_avals)[-2:]
    assert [leaf.shape for leaf in fed] == [(8, 6, 5, 3), (8,)]
    assert all(leaf.sharding.shard_shape(leaf.shape)[0] == 4 // data for leaf in images.training.feed_shapes)


def make_schedule(**changes):
    settings = {
        "seed": 3,
        "split": "shared",
        "workers": 4,
        "examples": 40,
        "rounds": 7,
        "local_steps": 3,
        "batch_size": 6,
        "turns": 2,
        "data_shards": 2,
        "devices": (0, 1, 2, 3),
        "chunk_size": 2,
    }
    return TrainingSchedule(**{**settings, **changes})


def read_by_workers(schedule):
    """Every worker's examples in the order of its stream, from all chunks of a schedule; no place twice."""
    read = [{} for _ in range(schedule.workers)]
    for number in range(len(schedule)):
        chunk = schedule.chunk(number)
        for index, position in zip(chunk.indices.tolist(), chunk.positions.tolist(), strict=True):
            assert position not in read[chunk.worker]
            read[chunk.worker][position] = index
    return [[index for _, index in sorted(places.items())] for places in read]


@pytest.mark.compat
@pytest.mark.parametrize("split", ["shared", "disjoint"])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"chunk_size": 3},
        {"turns": 1, "data_shards": 1},
        {"turns": 4, "data_shards": 1, "devices": (0,), "chunk_size": 4},
    ],
    ids=["data shards", "whole parts", "a device a worker", "one device, ragged chunks"],
)
def test_workers_read_what_they_read_from_the_device(split, layout):
    schedule = make_schedule(split=split, **layout)
    count = schedule.rounds * schedule.local_steps * schedule.batch_size
    sizes = {"count": count, "examples": 40, "workers": 4, "split": split}
    expected = [worker_order(key_for(3, Purpose.ORDER), worker, 0, **sizes).tolist() for worker in range(4)]
    assert read_by_workers(schedule) == expected


def test_processes_read_what_their_devices_need_and_nothing_else():
    whole, parts = make_schedule(), [make_schedule(devices=(0, 1)), make_schedule(devices=(2, 3))]
    chunks = [[schedule.chunk(number) for number in range(len(schedule))] for schedule in (whole, *parts)]
    places = [{(c.worker, *c.positions.tolist()) for c in of_one} for of_one in chunks]
    assert not places[1] & places[2]
    assert places[1] | places[2] == places[0]
