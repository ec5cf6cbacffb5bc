"""Processes that read: the same images as without them, gone when they should be, and heard of when they die."""

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import count, islice
from multiprocessing import active_children
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from helpers import TESTS
from helpers.prepared import load, photographs, prepare

from loft_jax.data.streaming.schedule import FixedSchedule, TrainingSchedule
from loft_jax.data.streaming.slots import Slots
from loft_jax.data.streaming.stream import default_readers
from loft_jax.errors import RunStopped, UserError
from loft_jax.randomness import Purpose

CROP = (3, Purpose.AUGMENTATION)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """JPEGs of mixed sizes, 40 to train on; one of the 8 to test on is cut short, and one has no label."""
    path = tmp_path_factory.mktemp("mixed")
    files, labels = photographs(8, seed=1)
    files[5], labels[2] = files[5][: len(files[5]) // 2], -1
    prepare(path, {"train": photographs(40), "test": (files, labels)}, shape=(None, None, 3))
    return path


def opened(directory, **settings):
    return load("tiny_images", directory, image_size=16, **settings)


def make_schedule(**changes):
    """Two workers on two devices, 4 rounds of 3 steps of 5 images, in chunks of 2, 2 and 1."""
    data = {"seed": 3, "split": "shared", "workers": 2, "examples": 40, "rounds": 4, "local_steps": 3, "batch_size": 5}
    return TrainingSchedule(**{**data, "turns": 1, "data_shards": 1, "devices": (0, 1), "chunk_size": 2, **changes})


def chunks_of(stream):
    """(images, labels) of each chunk, endlessly."""
    for _ in count():
        images, labels = np.zeros((2, 16, 16, 3), np.uint8), np.zeros(2, np.int32)
        filled = stream.fill(images, labels)
        yield images[:filled], labels[:filled]


def assert_same_chunks(one, other):
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def blocked_signals(pid):
    (mask,) = [line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigBlk" in line]
    return {number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if int(mask, 16) >> (number - 1) & 1}


@pytest.mark.compat
def test_processes_read_what_threads_read_from_any_round_on_and_end_when_they_are_told(directory):
    schedule = make_schedule()
    with opened(directory, readers=0).stream("train", schedule, crop=CROP) as stream:
        expected = list(islice(chunks_of(stream), len(schedule)))
    assert [len(labels) for _, labels in expected[:3]] == [2, 2, 1]
    start = 2 * schedule.chunks_per_round
    with opened(directory, readers=2).stream("train", schedule, crop=CROP, start=start) as stream:
        chunks = chunks_of(stream)
        read = [next(chunks)]
        time.sleep(0.5)  # Readers that did not wait for room would be rounds ahead by now.
        read += islice(chunks, 20)
        assert_same_chunks(expected[start : start + 21], read)
        children = active_children()
        assert len(children) == 2
        for child in children:
            assert blocked_signals(child.pid) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        memory = Path(stream._slots.path)
        assert memory.exists()
    assert active_children() == []
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not memory.exists()


def test_readers_that_have_ended_by_themselves_can_be_closed(directory):
    with opened(directory, readers=2).stream("train", make_schedule()) as stream:
        next(chunks_of(stream))
        stream._slots.close()
        while any(child.is_alive() for child in active_children()):
            time.sleep(0.05)
        closing = threading.Thread(target=stream.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive(), "Grain waits for readers that are no more"


def test_a_reader_that_dies_is_an_error_and_no_hang(directory):
    with opened(directory, readers=2).stream("train", make_schedule(rounds=100), crop=CROP) as stream:
        chunks = chunks_of(stream)
        next(chunks)
        os.kill(active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(RunStopped, match=r"a process that reads tiny_images has died \(.*exit code -9\)"):
            list(chunks)
    assert active_children() == []


KILLED = """
import sys, time
from multiprocessing import active_children
import numpy as np
sys.path[:0] = {places!r}
from test_readers import CROP, chunks_of, make_schedule, opened
if __name__ == "__main__":
    stream = opened({directory!r}, readers=2).stream("train", make_schedule(rounds=100), crop=CROP)
    next(chunks_of(stream))
    print(stream._slots.path, *(child.pid for child in active_children()), flush=True)
    time.sleep(600)
"""


@pytest.mark.full
def test_readers_end_with_a_run_that_is_killed(directory, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(places=[str(TESTS), str(Path(__file__).parent)], directory=str(directory)))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as run:
        memory, *readers = run.stdout.readline().split()
        assert len(readers) == 2
        run.kill()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in readers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in readers)
    assert not Path(memory).exists()


def test_crops_are_those_of_a_place_in_a_workers_stream_whatever_the_devices(directory):
    data, read = opened(directory, readers=0), []
    for layout in ({}, {"turns": 2, "devices": (0,)}, {"data_shards": 5, "devices": tuple(range(10)), "chunk_size": 1}):
        schedule, places = make_schedule(rounds=1, **layout), {}
        with data.stream("train", schedule, crop=CROP) as stream:
            for number, (images, labels) in enumerate(islice(chunks_of(stream), len(schedule))):
                chunk = schedule.chunk(number)
                for place, image, label in zip(chunk.positions.tolist(), images, labels.tolist(), strict=True):
                    places[chunk.worker, place] = image.tobytes(), label
        read.append(places)
    assert len(read[0]) == 30
    assert read[0] == read[1] == read[2]


def test_crops_differ_by_seed_purpose_and_place_and_without_one_are_the_middle(directory):
    data = opened(directory, readers=0)
    schedule = FixedSchedule(np.zeros(4, int), np.arange(4)[None, None], chunk_size=4)
    images, labels = np.zeros((4, 16, 16, 3), np.uint8), np.zeros(4, np.int32)
    seen = set()
    for crop in ((0, 0), (0, 1), (1, 0)):
        with data.stream("train", schedule, crop=crop) as stream:
            stream.fill(images, labels)
        seen |= {image.tobytes() for image in images}
    assert len(seen) == 12
    with data.stream("train", schedule) as stream:
        stream.fill(images, labels)
    assert len({image.tobytes() for image in images}) == 1


def first_chunk(data, index):
    schedule = FixedSchedule(np.arange(8), np.array([[[index, -1]]]), chunk_size=2)
    with data.stream("test", schedule) as stream:
        return next(chunks_of(stream))


def test_what_is_no_example_is_a_black_image_without_a_label(directory):
    data = opened(directory, readers=0)
    whole = next(index for index in range(8) if readable(data, index))
    images, labels = first_chunk(data, whole)
    assert labels[0] in range(3)
    assert labels[1] == -1
    assert images[0].any()
    assert not images[1].any()


def readable(data, index):
    try:
        first_chunk(data, index)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("readers", [0, 1])
def test_a_damaged_image_is_refused_by_split_and_index(directory, readers):
    refused = {}
    for index in range(8) if readers == 0 else [damaged_index(directory)]:
        try:
            first_chunk(opened(directory, readers=readers), index)
        except UserError as error:
            refused[index] = str(error)
    damaged = damaged_index(directory)
    assert refused[damaged].startswith(f"data.name=tiny_images: image {damaged} of split test in {directory}")
    assert "cannot be decoded (OSError: image file is truncated" in refused[damaged]
    if readers == 0:
        (unlabelled,) = set(refused) - {damaged}
        assert f"image {unlabelled} of split test has label -1, not one of 0 to 2" in refused[unlabelled]


def damaged_index(directory):
    """TFDS shuffles when it writes."""
    for index in range(8):
        try:
            first_chunk(opened(directory, readers=0), index)
        except UserError as error:
            if "decoded" in str(error):
                return index
    raise AssertionError("no image is damaged")


def test_memory_that_is_not_there_is_refused_before_anything_is_read(monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(UserError, match=r"data\.readers=3: they need 7 MiB of shared memory in .*No space left"):
        Slots(readers=3, depth=4, chunk_size=4, image_shape=(224, 224, 3))


def test_where_processes_share_no_memory_threads_read_and_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("loft_jax.data.streaming.slots._SHARED_MEMORY", tmp_path / "none")
    Slots(readers=1, depth=2, chunk_size=3, image_shape=(4, 5, 1)).close()
    monkeypatch.setattr("multiprocessing.context.BaseContext.Lock", mock.Mock(side_effect=PermissionError))
    assert default_readers() == 0
    with pytest.raises(UserError, match=r"data\.readers=3: processes cannot share memory here.*use data\.readers=0"):
        Slots(readers=3, depth=2, chunk_size=3, image_shape=(4, 5, 1))


def test_memory_that_killed_processes_have_left_is_freed_and_that_of_others_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("loft_jax.data.streaming.slots._SHARED_MEMORY", tmp_path)
    (tmp_path / "loft_jax_left").write_bytes(bytes(10))
    (tmp_path / "of somebody else").write_bytes(bytes(10))
    first = Slots(readers=1, depth=2, chunk_size=3, image_shape=(4, 5, 1))
    second = Slots(readers=1, depth=2, chunk_size=3, image_shape=(4, 5, 1))
    assert sorted(tmp_path.iterdir()) == sorted([first.path, second.path, tmp_path / "of somebody else"])
    for slots in (first, second):
        slots.close()


def test_statistics_are_exact_where_images_are_of_one_size(tmp_path, monkeypatch):
    from helpers.prepared import tiny_content

    monkeypatch.setenv("LOFT_JAX_CACHE", str(tmp_path / "cache"))
    prepare(tmp_path, tiny_content())
    on_device, streamed = (load("tiny_images", tmp_path, loading=way, readers=0) for way in ("device", "stream"))
    np.testing.assert_array_equal(on_device.channel_statistics, streamed.channel_statistics)


def test_statistics_of_mixed_sizes_are_those_of_evenly_spaced_middles_and_are_cached(directory, tmp_path, monkeypatch):
    monkeypatch.setenv("LOFT_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr("loft_jax.data.streaming.dataset._STATISTICS_IMAGES", 10)
    data = opened(directory, readers=0)
    schedule = FixedSchedule(np.arange(0, 40, 4), np.arange(10)[None, None], chunk_size=2)
    with data.stream("train", schedule) as stream:
        pixels = np.concatenate([images for images, _ in islice(chunks_of(stream), 5)]).astype(np.float64)
    mean, std = data.channel_statistics
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), rtol=1e-6)
    monkeypatch.setattr("loft_jax.data.streaming.dataset.StreamedDataset.stream", None)
    np.testing.assert_array_equal(opened(directory, readers=0).channel_statistics, (mean, std))


def test_slots_that_nobody_closes_are_removed_at_exit():
    code = "from loft_jax.data.streaming.slots import Slots; print(Slots(1, 2, 3, (4, 5, 1)).path)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).exists()
