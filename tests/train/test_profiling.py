"""Rounds that are traced, and a run's share of the peak of its devices."""

import gzip
import json

import jax
import pytest
from helpers.runs import config_of, opened, settings_with

from loft_jax.config.config import Config
from loft_jax.devices import Chip
from loft_jax.models import create_model, training_flops
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.train.__main__ import print_summary, run
from loft_jax.train.experiment import Experiment
from loft_jax.train.profiling import trace_round


def events_of(directory):
    """Names of all events in the one trace that Perfetto opens in a directory."""
    (file,) = directory.glob("plugins/profile/*/perfetto_trace.json.gz")
    return {event.get("name") for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A finished run of which two rounds were traced."""
    path, config = tmp_path_factory.mktemp("profiled") / "run", config_of(train={"profile_rounds": "2,3"})
    directory = opened(path, config)
    run(config, directory)
    directory.close()
    return path


def test_the_named_rounds_are_traced_with_their_phases(profiled):
    assert sorted(path.name for path in (profiled / "profile").iterdir()) == ["round2", "round3"]
    for number, phases in ((2, {"train", "sync"}), (3, {"train", "sync", "evaluation"})):
        events = events_of(profiled / f"profile/round{number}")
        assert phases <= events
        assert "round" in events
        assert not any(name and name.startswith("$") for name in events), "calls of Python functions are not recorded"


def test_a_trace_is_a_file_that_profilers_read(profiled):
    (file,) = (profiled / "profile/round2").glob("plugins/profile/*/*.xplane.pb")
    planes = {plane.name for plane in jax.profiler.ProfileData.from_file(str(file)).planes}
    assert any("CPU" in name for name in planes)


def test_a_traced_run_has_the_results_and_the_hash_of_any_other(profiled, finished):
    path, summary = finished
    traced = RunDirectory(profiled)
    assert traced.read_config().hash() == summary["config_hash"]
    for row, other in zip(traced.rows(), RunDirectory(path).rows(), strict=True):
        for key in ("train/loss", "test/loss", "test/accuracy", "learning_rate"):
            assert row.get(key) == other.get(key)


def test_a_round_that_is_trained_again_has_one_trace(tmp_path):
    for _ in range(2):
        with trace_round(tmp_path, 1):
            jax.numpy.zeros(2).block_until_ready()
    assert "round" in events_of(tmp_path / "round1")


@pytest.mark.parametrize("failure", ["another trace is being taken", "the directory cannot be made"])
def test_a_profiler_that_fails_is_a_warning(failure, tmp_path, capfd):
    reached = False
    if failure == "another trace is being taken":
        with jax.profiler.trace(tmp_path / "other"), trace_round(tmp_path / "profile", 1):
            reached = True
    else:
        (tmp_path / "profile").write_text("a file")
        with trace_round(tmp_path / "profile", 1):
            reached = True
    assert reached
    assert f"warning: {tmp_path}/profile/round1: no trace is written" in capfd.readouterr().err


def test_an_error_in_a_traced_round_is_raised_and_ends_the_trace(tmp_path):
    with pytest.raises(ZeroDivisionError), trace_round(tmp_path, 1):
        raise ZeroDivisionError
    with trace_round(tmp_path, 2):
        pass
    assert "round" in events_of(tmp_path / "round2")


# FLOPs of LoFT-4's sub-CNN of `runs.SETTINGS`: a quarter of the filters in all but the first block of stages 2 and 3.
SPLIT = {f"stage{stage}/block{block}": 2 ** (stage - 1) for stage in (2, 3) for block in (2, 3)}


@pytest.fixture
def pretended(monkeypatch):
    """A chip of 0.5e12 FLOPs a second in float32 and 2e12 in bfloat16, which every device is."""
    chip = Chip("pretended", tflops=2.0, tflops_float32=0.5)
    monkeypatch.setattr("loft_jax.train.experiment.find_chip", lambda kind: chip)


def test_metrics_summary_and_last_lines_have_the_share_of_peak(pretended, tmp_path, capsys):
    directory = opened(tmp_path / "run", config_of())
    summary = run(config_of(), directory)
    directory.close()
    flops = training_flops(create_model("preresnet20", 10, width=4).with_widths(SPLIT), (8, 8, 1)).computed
    first, *rows = RunDirectory(tmp_path / "run").rows()
    assert "share_of_peak" not in first
    for row in [*rows, summary]:
        assert row["share_of_peak"] == pytest.approx(row["images_per_second"] * flops / (4 * 0.5e12))
    capsys.readouterr()
    print_summary(summary | {"share_of_peak": 0.4123})
    assert "all workers; 41.2% of the devices' peak" in capsys.readouterr().out


@pytest.mark.parametrize(("precision", "peak"), [("float32", 0.5e12), ("bfloat16", 2e12)])
def test_the_peak_is_that_of_the_precision_and_of_all_devices(precision, peak, pretended):
    config = Config.model_validate({**settings_with(), "precision": precision})
    model = create_model("preresnet20", 10, width=4, dtype=jax.numpy.dtype(precision)).with_widths(SPLIT)
    share = Experiment.build(config).share_of_peak(1e6)["share_of_peak"]
    assert share == pytest.approx(1e6 * training_flops(model, (8, 8, 1)).computed / (4 * peak))


def test_a_worker_on_two_devices_needs_both_of_their_peaks(pretended):
    config = Config.model_validate({**settings_with(mesh={"data": 2, "cpu_devices": 4}, loft={"workers": 2})})
    experiment = Experiment.build(config)
    assert experiment.mesh.size == 4
    flops = training_flops(experiment.method.step.model.with_norms(), (8, 8, 1)).computed
    assert experiment.share_of_peak(1e6)["share_of_peak"] == pytest.approx(1e6 * flops / (4 * 0.5e12))


def test_without_a_known_peak_there_is_no_share(finished):
    path, summary = finished
    assert not any("share_of_peak" in row for row in [*RunDirectory(path).rows(), summary])
