"""The events that TensorBoard reads, read by TensorBoard."""

from itertools import pairwise

import pytest
from helpers.fake_runs import fake_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from loft_jax.storage.events import PATTERN, _checksum
from loft_jax.storage.run_directory import RunDirectory


def scalars(directory):
    """Tag -> [(step, value)]."""
    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def expected(directory, key):
    return [(row["round"], pytest.approx(row[key])) for row in directory.rows() if key in row]


def test_the_checksum_is_crc_32c_masked_as_tensorflow_masks_it():
    crc = 0xE3069283  # of these nine bytes, by RFC 3720
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _checksum(b"123456789") == masked.to_bytes(4, "little")


def test_every_metric_is_an_event_of_its_round(tmp_path):
    directory = fake_run(tmp_path / "run", rounds=300)
    found = scalars(directory.path)
    for key in ("train/loss", "test/accuracy", "epoch", "seconds/sync", "bytes_on_the_wire"):
        assert found[key] == expected(directory, key)
    assert "round" not in found


def test_a_resumed_run_has_each_round_once(tmp_path):
    directory = fake_run(tmp_path / "run")
    directory.forget_after(8)
    directory.append({"round": 9, "step": 144, "epoch": 4.5, "train/loss": 0.25})
    assert len(list(directory.path.glob(PATTERN))) == 1
    assert scalars(directory.path)["train/loss"] == expected(directory, "train/loss")
    assert scalars(directory.path)["train/loss"][-1] == (9, 0.25)


def test_training_writes_events(finished):
    directory = RunDirectory(finished[0])
    assert scalars(finished[0])["train/loss"] == expected(directory, "train/loss")


def test_events_of_rows_that_were_kept_lie_as_far_apart_as_the_rounds_took(tmp_path):
    directory = fake_run(tmp_path / "run")
    directory.forget_after(8)
    accumulator = EventAccumulator(str(directory.path))
    accumulator.Reload()
    times = [event.wall_time for event in accumulator.Scalars("epoch")]
    assert [b - a for a, b in pairwise(times)] == pytest.approx([1.2] * 8, abs=1e-3)
