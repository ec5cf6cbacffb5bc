"""`train.stop_when`: a run ends when its filters' ranking has settled, and ends there after a resume too."""

import shutil

import numpy as np
import pytest
from helpers.runs import assert_same_state, config_of, opened, train_rounds

from loft_jax.config.fields import Train
from loft_jax.errors import UserError
from loft_jax.filters.groups import FilterGroup
from loft_jax.filters.ranking import normalised_footrule
from loft_jax.storage.checkpoints import read_state
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.storage.saved import saved_rounds
from loft_jax.tickets.snapshots import Snapshots, rank_groups
from loft_jax.train.__main__ import print_summary, run, run as train
from loft_jax.train.stopping import TicketWatch

GROUPS = tuple(FilterGroup(name, 3, {f"params/{name}/kernel": 1}, True) for name in ("a", "b"))
# Warm-up is over after two rounds, so distances are judged at rounds 4, 6 and 8.
STOPPING = config_of(
    optimizer={"warmup_steps": 4},
    train={"rounds": 8, "eval_every": 8, "checkpoint_every": 1, "norm_batches": 2, "snapshot_every": 2}
    | {"snapshot_dense_rounds": 3, "stop_when": 5.0, "stop_snapshots": 2},
)


def variables(**scores):
    """Dense layers of one input whose filters have these norms."""
    return {"params": {name: {"kernel": np.array([values], np.float32)} for name, values in scores.items()}}


START, SWAPPED = variables(a=[3, 2, 1], b=[3, 2, 1]), variables(a=[2, 3, 1], b=[3, 2, 1])
SWAP = float(normalised_footrule([1, 2, 3], [2, 1, 3]))


def watching(**settings):
    return TicketWatch(Train(**settings), GROUPS)


def test_the_first_snapshot_has_no_distance():
    watch = watching(stop_when=0.1)
    assert watch.observe(START) == {}
    assert watch.reason is None


def test_distances_are_those_of_consecutive_snapshots_worst_and_mean():
    watch = watching(stop_when=0.1)
    watch.observe(START)
    assert watch.observe(SWAPPED) == pytest.approx({"distance/worst": SWAP, "distance/mean": SWAP / 2})
    assert watch.observe(SWAPPED) == {"distance/worst": 0.0, "distance/mean": 0.0}


@pytest.mark.parametrize(("groups", "stops"), [("mean", True), ("worst", False)])
def test_the_threshold_is_held_against_the_worst_group_or_the_mean(groups, stops):
    watch = watching(stop_when=0.75 * SWAP, stop_snapshots=1, stop_groups=groups)
    watch.observe(START)
    watch.observe(SWAPPED)
    assert (watch.reason is not None) == stops


def test_a_run_stops_when_the_last_k_distances_are_below_the_threshold():
    watch = watching(stop_when=0.1, stop_snapshots=2)
    reasons = []
    for snapshot in (START, START, SWAPPED, SWAPPED, SWAPPED):
        watch.observe(snapshot)
        reasons.append(watch.reason)
    assert reasons[:4] == [None] * 4
    assert "the ticket has appeared" in reasons[4]
    assert "(the group that moved most, 1 is chance) was 0.0000, 0.0000, below train.stop_when=0.1" in reasons[4]


def test_a_resumed_watch_counts_the_rows_from_before():
    watch = watching(stop_when=0.1, stop_snapshots=2)
    watch.resume(START, [{"round": 0}, {"round": 1, "distance/worst": 0.0, "distance/mean": 0.0}])
    assert watch.reason is None
    watch.observe(START)
    assert watch.reason is not None


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of eight rounds that stops after six, the distances being below 5 whatever happens."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    return path, run(STOPPING, opened(path, STOPPING))


@pytest.mark.full
def test_a_run_that_stops_says_why_and_ends_like_any_other(stopped, capsys):
    path, summary = stopped
    rows = RunDirectory(path).rows()
    assert [row["round"] for row in rows if "distance/worst" in row] == [4, 6]
    assert rows[-1]["round"] == summary["round"] == 6
    assert "test/accuracy" in rows[-1]
    assert summary["images"] == 6 * 4 * 2 * 8
    assert f"was {rows[4]['distance/worst']:.4f}, {rows[6]['distance/worst']:.4f}, below" in summary["stopped"]
    assert saved_rounds(path / "checkpoints") == [5, 6]
    assert saved_rounds(path / "snapshots") == [0, 1, 2, 3, 4, 6]
    print_summary(summary)
    assert "stopped   the ticket has appeared" in capsys.readouterr().out


@pytest.mark.full
def test_the_distances_of_a_run_are_those_of_its_judged_snapshots(stopped):
    snapshots, rows = Snapshots(RunDirectory(stopped[0])), RunDirectory(stopped[0]).rows()
    before, after = (rank_groups(snapshots.scores(round_number, "l2")) for round_number in (2, 4))
    distances = [float(normalised_footrule(before[name], after[name])) for name in before]
    assert rows[4]["distance/worst"] == pytest.approx(max(distances), rel=1e-5)
    assert rows[4]["distance/mean"] == pytest.approx(np.mean(distances), rel=1e-5)


@pytest.mark.full
def test_an_interrupted_run_stops_where_an_undisturbed_one_does(stopped, tmp_path):
    train_rounds(tmp_path / "run", STOPPING, 5)
    summary = run(STOPPING, opened(tmp_path / "run", STOPPING))
    assert summary["stopped"] == stopped[1]["stopped"]
    assert_same_state(read_state(tmp_path / "run/checkpoints", 6), read_state(stopped[0] / "checkpoints", 6))


@pytest.mark.full
def test_a_stopped_run_whose_summary_was_lost_has_no_round_left(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    assert run(STOPPING, opened(tmp_path / "run", STOPPING))["stopped"] == stopped[1]["stopped"]
    assert len(RunDirectory(tmp_path / "run").rows()) == 7


def test_snapshots_can_be_denser_at_the_start():
    settings = Train(rounds=7, snapshot_every=4, snapshot_dense_rounds=2)
    assert [done for done in range(8) if settings.snapshot_is_due(done)] == [0, 1, 2, 4, 7]


@pytest.mark.parametrize(
    ("settings", "distances"), [({}, 1), ({"warmup_steps": 9}, 0), ({"rounds": 2, "snapshot_every": 1}, 2)]
)
def test_a_run_that_could_never_stop_is_refused(settings, distances):
    warmup = {"warmup_steps": settings.pop("warmup_steps", 0)}
    train = {"rounds": 6, "snapshot_every": 4, "stop_when": 0.1, **settings}
    with pytest.raises(
        ValueError, match=f"there are only {distances} distances between snapshots that are train.snapshot_every="
    ):
        config_of(train=train, optimizer=warmup)


def test_the_cadence_of_snapshots_may_change_on_resume_unless_it_decides_the_end():
    assert "train.snapshot_every" in config_of().resumable_keys()
    assert "train.snapshot_every" not in STOPPING.resumable_keys()


def test_as_many_distances_as_there_are_can_be_asked_for_and_no_more():
    # Warm-up is over in round 1, so rounds 4 and 8 are judged: one distance.
    def asking(count):
        train = {"rounds": 8, "snapshot_every": 4, "stop_when": 0.1, "stop_snapshots": count}
        return config_of(train=train, optimizer={"warmup_steps": 1})

    assert [r for r in range(9) if asking(1).stop_check_is_due(r)] == [4, 8]
    with pytest.raises(ValueError, match="there are only 1 distances"):
        asking(2)


@pytest.mark.full
def test_a_run_does_not_go_on_past_a_judged_snapshot_that_is_damaged(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    shutil.rmtree(tmp_path / "run/snapshots/6/default/d")
    message = r"snapshots/6: .*train.stop_when needs it to continue. Delete the checkpoints of round 6 and later"
    with pytest.raises(UserError, match=message):
        train(STOPPING, opened(tmp_path / "run", STOPPING))
