"""How retrain says no: bad arguments, tickets that do not fit, jobs that diverge; nothing is written."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest
from helpers.runs import TICKET, config_of
from helpers.settings_helpers import refusal

from loft_jax.config.config import Config
from loft_jax.errors import Preempted, RunStopped, UserError
from loft_jax.retrain.__main__ import check_options, retrain_config


def test_a_job_that_diverges_keeps_no_other_from_being_trained(run, retrain, monkeypatch, capsys):
    trained = []

    def diverging(retraining, job, preemption):
        trained.append(job.mode)
        raise RunStopped("train/loss is nan")

    monkeypatch.setattr("loft_jax.retrain.retraining.Retraining.run", diverging)
    with pytest.raises(RunStopped, match=r"rewind/seed0: train/loss is nan\n.*init/seed0: train/loss is nan"):
        retrain(run, "--ticket", TICKET, "--mode", "rewind", "init")
    assert trained == ["rewind", "init"]


def test_a_start_that_failed_claims_no_directory(run, retrain, monkeypatch):
    with pytest.raises(UserError, match=r"mesh.data=8: only 4 cpu devices are available"):
        retrain(run, "--ticket", f"{TICKET}/", "--mesh.data", 8)
    monkeypatch.setattr("loft_jax.retrain.retraining.Retraining.run", lambda *_: {"seed": 0})
    monkeypatch.setattr("loft_jax.retrain.__main__.write_results", lambda run: [])
    retrain(run, "--ticket", TICKET, "--train.rounds", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --ticket NAME .* or --every K --ratio R"),
        (["--ticket", TICKET, "--every", "2"], "give either --ticket NAME .* or --every K --ratio R"),
        (["--every", "2"], "--every K and --ratio R go together"),
        (["--ticket", TICKET, "--ratio", "0.5"], "--every K and --ratio R go together"),
        (["--ticket", TICKET, "--norm", "l1"], "--scope and --norm go with --every"),
        (["--every", "2", "--ratio", "0.5", "--mode", "init"], "--mode init: is the same network for every snapshot"),
        (["--every", "2", "--ratio", "1"], r"--ratio: 1: must be in \[0, 1\)"),
        (["--every", "0", "--ratio", "0.5"], "--every: 0: must be a whole number of at least 1"),
        (["--ticket", "r9-group-l2-0.5"], "--ticket r9-group-l2-0.5: no such ticket .* did you mean r6-group-l2-0.5"),
        (["--ticket", TICKET, "--mode", "rewnd"], "invalid choice: 'rewnd'"),
        (["--ticket", TICKET, "--seeds", "-1"], "--seeds: -1: must be a whole number of at least 0"),
        (["--ticket", TICKET, "--rewind_to", "5"], "--rewind_to 5: no such snapshot; try 4; there are 0, 4, 6"),
        (["--ticket", TICKET, "--rewind_to", "4", "--mode", "finetune"], "finetune does not rewind; leave it out"),
        (["--ticket", TICKET, "--seed", "1"], "--seed: cannot be changed for a retraining: use --seeds"),
        (["--ticket", TICKET, "--model.width", "8"], "--model.width: cannot be changed .* its run's model"),
        (["--ticket", TICKET, "--loft.workers", "2"], "--loft.workers: cannot be changed .* by plain SGD"),
        (["--ticket", TICKET, "--loft.momentum", "reset"], "--loft.momentum: cannot be changed .* keeps its momentum"),
        (["--ticket", TICKET, "--data.loading", "stream"], "data.loading=stream: digits ships with"),
        (["--ticket", TICKET, "--train.stop_when", "1"], "--train.stop_when: cannot be changed"),
        (["--ticket", TICKET, "--train.rounds", "0"], "train.rounds='0': must be greater than or equal to 1"),
        (["--ticket", TICKET, "--train.round", "2"], "unknown option --train.round; did you mean --train.rounds?"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(arguments, message, run, retrain):
    with pytest.raises(UserError, match=message):
        retrain(run, *arguments)
    assert not (run / "retrain").exists()


def broken(fields):
    """The ticket with its first group changed, or another field."""

    def change(ticket):
        if "kept" in fields:
            ticket["kept"] |= fields["kept"]
            return ticket
        return ticket | fields

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken({"config_hash": "0123456789ab"}), "was drawn from a run of config 0123456789ab"),
        (
            broken({"kept": {"stage3/block3": [3, 16]}}),
            "'stage3/block3' keeps filter 16, and the model has 16; draw it",
        ),
        (broken({"kept": {"stage2/block1": []}}), "'stage2/block1' must keep ascending filter indices, at least one"),
        (broken({"kept": {"stage2/block1": [2, 1]}}), "'stage2/block1' must keep ascending filter indices"),
        (broken({"kept": {"stage4/block1": [0]}}), "'stage4/block1' is not in both the ticket and the model"),
    ],
)
def test_a_ticket_that_does_not_fit_is_refused_and_nothing_is_written(change, message, run, retrain):
    path = run / "tickets" / TICKET / "ticket.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        retrain(run, "--ticket", TICKET)
    assert not (run / "retrain").exists()


def test_a_wrong_run_is_one_message_and_exit_code_2(tmp_path):
    arguments = [sys.executable, "-m", "loft_jax.retrain", str(tmp_path), "--ticket", TICKET]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: holds no config.yaml")
    assert "Traceback" not in done.stderr


def test_a_retraining_does_not_stop_when_the_run_did():
    config = retrain_config(config_of(train={"stop_when": 0.1, "rounds": 40}, mesh={"worker": 2}), {})
    assert (config.train.stop_when, config.mesh.worker) == (None, None)


def test_a_retraining_takes_no_snapshots():
    for key in ("train.snapshot_every", "train.snapshot_dense_rounds"):
        assert refusal(retrain_config, Config(), {key: "1"}) == (
            f"--{key}: cannot be changed for a retraining: a retraining takes no snapshots"
        )


def test_random_filters_of_global_tickets_differ_between_snapshots():
    given = {"ticket": None, "every": 2, "ratio": 0.5, "norm": None, "rewind_to": 0, "mode": ["random"]}
    check_options(Namespace(**given, scope="global"), [0], Config())
    assert "--mode random: is the same network for every snapshot" in refusal(
        check_options, Namespace(**given, scope=None), [0], Config()
    )


def test_a_campaign_that_is_asked_to_stop_begins_no_further_retraining(run, retrain, monkeypatch):
    def preempted(retraining, job, preemption):
        preemption.requested = True
        return {"seed": 0}

    monkeypatch.setattr("loft_jax.retrain.retraining.Retraining.run", preempted)
    monkeypatch.setattr("loft_jax.retrain.__main__.write_results", lambda run: [])
    with pytest.raises(Preempted, match=r"stopped   by SIGTERM, 1 retrainings left; run the same command again"):
        retrain(run, "--ticket", TICKET, "--mode", "rewind", "init")


def test_what_is_named_twice_is_retrained_once(run, retrain, monkeypatch):
    trained = []

    def recorded(retraining, job, preemption):
        trained.append((job.ticket.name, job.mode, job.config.seed))
        return {"seed": 0}

    monkeypatch.setattr("loft_jax.retrain.retraining.Retraining.run", recorded)
    monkeypatch.setattr("loft_jax.retrain.__main__.write_results", lambda run: [])
    retrain(run, "--ticket", TICKET, f"{TICKET}", "--mode", "rewind", "rewind", "--seeds", 3, 3)
    assert trained == [(TICKET, "rewind", 3)]
