"""The programs of examples/ run, and use public names only."""

import ast
import json
import re
import runpy
import subprocess
import sys
import wave

import numpy as np
import pytest
from helpers import ROOT
from helpers.prepared import prepare, tiny_content

import loft_jax
from loft_jax.models import make_model

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def example(monkeypatch, capsys, tmp_path):
    """Run an example in an empty directory; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_ranking_of_checkpoints_from_elsewhere(example, tmp_path):
    first = np.random.default_rng(0).normal(size=(8, 3, 3, 3))
    for name, kernel in {"a": first, "b": first + 1.0, "c": first}.items():
        np.savez(tmp_path / f"{name}.npz", conv=kernel)
    printed = example("ranking_of_any_checkpoint", "a.npz", "b.npz", "c.npz", "--layer", "conv", "--out", "map.png")
    assert "conv: 8 filters, 3 checkpoints" in printed
    first, second, last = (float(line.split()[2]) for line in printed.splitlines()[1:4])
    assert first == last == 0 < second
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_the_ranking_settles_in_the_made_up_checkpoints(example):
    lines = example("ranking_of_any_checkpoint").splitlines()
    distances = [float(line.split()[2]) for line in lines if line.startswith("  checkpoint")]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.5 > distances[-1] == 0


@pytest.mark.full
def test_a_partition_by_hand(example):
    printed = example("partition_by_hand")
    assert "every owned slice is in the full network, to the bit" in printed
    assert printed.count("worker") >= 4


@pytest.mark.full
def test_a_ticket_by_hand(example, finished):
    printed = example("prune_and_evaluate", finished[0], "--ratio", 0.5)
    assert "full network 17,414 parameters" in " ".join(printed.split())
    assert f"{finished[1]['test/accuracy']:.2%}" in printed
    assert printed.count("8,978 parameters") == 4


def test_a_data_set_is_packed_into_one_file_that_a_config_can_name(example, tmp_path):
    from loft_jax.data.digits import load_digits

    printed = example("pack_dataset", "digits", "--out", "digits.npz", "--seed", 3)
    assert printed.startswith("digits.npz: 1,437 training and 360 test images, 0.0")
    read = loft_jax.load_dataset(loft_jax.Config(data={"name": "arrays", "data_dir": "digits.npz"}))
    assert (read.name, read.num_classes) == ("digits", 10)
    np.testing.assert_array_equal(read.train_images, load_digits(3).train_images)
    np.testing.assert_array_equal(read.test_labels, load_digits(3).test_labels)


def test_the_image_files_of_tfds_are_packed_as_they_are(example, tmp_path, monkeypatch):
    monkeypatch.setenv("LOFT_JAX_CACHE", str(tmp_path / "cache"))
    prepare(tmp_path / "data", tiny_content())
    packed = {}
    for name, options in {"pixels": (), "files": ("--files",)}.items():
        example("pack_dataset", "tiny_images", "--data_dir", "data", "--out", f"{name}.npz", *options)
        packed[name] = loft_jax.load_dataset(loft_jax.Config(data={"name": "arrays", "data_dir": f"{name}.npz"}))
    assert packed["files"].fingerprint == packed["pixels"].fingerprint
    assert {"train_files", "train_ends", "class_names"} <= set(np.load("files.npz").files)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--files"], "--files is for data sets of TFDS"),
        (["digits", "--data_dir", "x"], "digits ships with scikit-learn"),
        (["cifar11"], "data.name=cifar11: no such data set; did you mean cifar10"),
    ],
)
def test_what_cannot_be_packed_is_one_message(example, arguments, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        example("pack_dataset", *arguments, "--out", "x.npz")


def tone(hertz, seconds=1.0):
    """A sound of int16 samples."""
    moments = np.arange(int(16_000 * seconds)) / 16_000
    return (2**14 * np.sin(2 * np.pi * hertz * moments)).astype("<i2")


def write_wav(path, samples, rate=16_000):
    path.parent.mkdir(exist_ok=True, parents=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


@pytest.fixture
def speech(example, tmp_path):
    """The example on a folder of words that are tones, low and high, of twenty speakers."""
    pytest.importorskip("librosa")
    for word, hertz in {"low": 300, "high": 3000}.items():
        for speaker in range(20):
            write_wav(tmp_path / "words" / word / f"{speaker:08x}_nohash_0.wav", tone(hertz, 0.5 + speaker / 30))
    write_wav(tmp_path / "words/_background_noise_/pink.wav", tone(50))
    return example


def test_features_of_speech_are_read_as_arrays_and_know_low_from_high(speech):
    printed = speech("speech_features", "folder", "words", "--out", "speech.npz")
    read = loft_jax.load_dataset(loft_jax.Config(data={"name": "arrays", "data_dir": "speech.npz"}))
    assert (read.name, read.image_shape, read.class_names) == ("speech_commands", (4096,), ("high", "low"))
    assert f"{read.examples} training and {read.test_examples} test sounds, 2 words, 4,096 features" in printed
    assert read.examples + read.test_examples == 40
    # All sounds of a speaker are on one side.
    assert np.bincount(read.test_labels)[0] == np.bincount(read.test_labels)[1] >= 1
    loudest = read.train_images.reshape(-1, 128, 32)[:, :, 10].argmax(axis=1)
    high, low = (loudest[read.train_labels == label] for label in (0, 1))
    assert low.max() < 20 < 70 < high.min()


def test_features_of_speech_from_tfds_are_those_of_its_sounds(example, tmp_path):
    pytest.importorskip("librosa")
    import tensorflow_datasets as tfds

    class Sounds(tfds.core.GeneratorBasedBuilder):
        name, VERSION = "speech_commands", tfds.core.Version("0.0.3")

        def _info(self):
            label = tfds.features.ClassLabel(names=["low", "high"])
            # In place of an Audio, for which TFDS needs TensorFlow.
            features = {"audio": tfds.features.Tensor(shape=(None,), dtype=np.int16), "label": label}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {split: self._generate_examples() for split in ("train", "validation", "test")}

        def _generate_examples(self):
            yield 0, {"audio": tone(300), "label": 0}
            yield 1, {"audio": tone(3000), "label": 1}

    builder = Sounds(data_dir=tmp_path / "data", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    example("speech_features", "tfds", "data", "--out", "speech.npz")
    arrays = np.load("speech.npz")
    assert arrays["train_images"].shape == (4, 4096)
    assert sorted(arrays["test_labels"].tolist()) == [0, 1]
    assert arrays["class_names"].tolist() == ["low", "high"]
    for label, band in ((0, 20), (1, 70)):
        loudest = arrays["test_images"][arrays["test_labels"] == label].reshape(128, 32)[:, 10].argmax()
        assert (loudest < band) == (label == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "nowhere"], "nowhere: no such directory"),
        (["folder", "empty"], "empty: holds no folder of a word"),
        (["folder", "words"], "has (channels, bytes, rate) (1, 2, 8000); must be (1, 2, 16000)"),
        (["folder", "silent"], "silent: holds too few sounds for a training and a test set"),
        (["tfds", "empty"], "empty: holds no speech_commands; prepare it with TFDS"),
    ],
)
def test_what_is_no_speech_is_one_message(example, arguments, message, tmp_path):
    pytest.importorskip("librosa")
    for name in ("empty", "silent/word"):
        (tmp_path / name).mkdir(parents=True)
    write_wav(tmp_path / "words/slow/a_nohash_0.wav", tone(300), rate=8000)
    with pytest.raises(SystemExit, match=re.escape(message)):
        example("speech_features", *arguments, "--out", "x.npz")


def test_a_directory_without_a_run_is_one_message(example, tmp_path):
    with pytest.raises(SystemExit, match="holds no checkpoints or snapshots"):
        example("prune_and_evaluate", tmp_path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_uses_public_names_only(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "loft_jax":
            assert node.module == "loft_jax"
            assert {alias.name for alias in node.names} <= set(loft_jax.__all__)
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("loft_jax.") for alias in node.names)


def test_the_documentation_names_every_example():
    text = (ROOT / "docs/guides/python.md").read_text(encoding="utf-8")
    for path in EXAMPLES:
        assert f"examples/{path.name}" in text, path.name


@pytest.mark.full
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    """In a process of its own, as a kernel is: its cells one after another, in one namespace."""
    cells = json.loads((ROOT / "examples" / "own_network.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 filter groups, found by tracing" in done.stdout
    assert (tmp_path / "report" / "report.html").exists()


@pytest.mark.parametrize(("name", "groups"), [("PocketVGG", 4), ("pocket_mlp", 1)])
def test_the_filters_of_a_network_of_ones_own(name, groups):
    path = ROOT / "examples" / "own_network.py"
    config = loft_jax.Config.model_validate({"model": {"name": f"{path}:{name}"}})
    assert len(make_model(config, 10, (8, 8, 1)).filter_groups()) == groups
