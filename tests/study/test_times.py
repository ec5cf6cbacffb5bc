"""What is known of the time that jobs take."""

from dataclasses import replace

import pytest
from helpers.studies import changed

from loft_jax.study.fields import Retraining
from loft_jax.study.jobs import expand
from loft_jax.study.study import Study
from loft_jax.study.times import Measured, Times, fits, waiting_for

JOBS = expand(Study.of(changed(), "s.yaml"))
BY_NAME = {job.name: job for job in JOBS}
TRAIN, SGD, RETRAIN = (BY_NAME[name] for name in ("loft4-seed0-pretrain", "sgd-seed0-pretrain", "loft4-seed0-at80"))


def times(retraining=None, rounds=None, **measured):
    """Measured by name, with dots for dashes: (seconds, share)."""
    found = {name.replace("__", "-"): Measured(*value) for name, value in measured.items()}
    return Times(JOBS, found, retraining or Retraining(), rounds)


def test_a_job_takes_what_is_declared_until_something_is_measured():
    assert times().left(TRAIN) == 30
    assert times().left(SGD) == 20


def test_an_estimate_is_corrected_by_how_long_other_trainings_took():
    slow = times(loft4__seed0__pretrain=(60, 1.0))
    assert slow.left(SGD) == 40
    assert slow.left(RETRAIN) == 80
    # What is no training says nothing of trainings, nor they of it.
    assert times(speed=(5, 1.0)).left(SGD) == 20
    assert times(speed=(5, 1.0), loft4__seed0__pretrain=(60, 1.0)).left(SGD) == 40
    assert slow.left(BY_NAME["speed"]) == 10


def test_the_same_step_of_the_same_setting_is_the_best_guess():
    known = times(loft4__seed0__pretrain=(60, 1.0), sgd__seed0__pretrain=(90, 1.0))
    assert known.left(BY_NAME["sgd-seed1-pretrain"]) == 90


def test_a_job_that_has_begun_takes_what_is_left_of_it_and_a_new_start():
    assert times(loft4__seed0__pretrain=(30, 0.5)).left(TRAIN) == pytest.approx(30)
    assert times(loft4__seed0__pretrain=(50, 0.99)).left(TRAIN) == pytest.approx(0.15 * 50 / 0.99)
    # Nothing can be said from the first steps.
    assert times(loft4__seed0__pretrain=(20, 0.01)).left(TRAIN) == pytest.approx(30 * 0.99)
    assert times(loft4__seed0__pretrain=(20, 0.0)).left(TRAIN) == 30


def test_a_job_fits_whole_or_as_much_of_it_as_is_worth_beginning():
    assert fits(times(), TRAIN, 30)
    assert not fits(times(), TRAIN, 29)
    step = TRAIN.step.model_copy(update={"least_seconds": 10.0})
    assert fits(times(), replace(TRAIN, step=step), 10)
    assert not fits(times(), replace(TRAIN, step=step), 9)
    assert fits(times(loft4__seed0__pretrain=(60, 0.95)), replace(TRAIN, step=step), 9.9)


def test_jobs_wait_for_what_they_need():
    assert waiting_for(RETRAIN, ["loft4-seed0-pretrain"]) == ["loft4-seed0-tickets"]
    assert waiting_for(RETRAIN, ["loft4-seed0-pretrain", "loft4-seed0-tickets"]) == []


def retrainings(**keys):
    """Jobs with two retraining steps of 40 and 60 s at 100 rounds, of which 10 s each do not depend on the rounds."""
    steps = {"steps__at50": {"kind": "retrain", "ratios": [0.5], "seconds": 60, "start_seconds": 10}}
    jobs = expand(Study.of(changed(**steps, steps__at80__start_seconds=10), "s.yaml"))
    length = Retraining(**{"rounds": 100, "least_rounds": 20, **keys})
    return Times(jobs, {}, length), next(job for job in jobs if job.name == "loft4-seed0-at80")


@pytest.mark.parametrize(
    ("left", "rounds"),
    [(1000, 100), (100, 100), (60, 50), (99.9, 99), (36, 20), (35, 20), (1, 20), (float("inf"), 100)],
)
def test_retrainings_are_as_long_as_those_of_the_first_run_may_take_together(left, rounds):
    known, job = retrainings()
    assert known.choose_rounds(job, left) == rounds
    chosen = replace(known, rounds=rounds)
    if rounds > 20:
        assert chosen.left(job) + chosen.left(next(j for j in known.jobs if j.name == "loft4-seed0-at50")) <= left


def test_a_slow_machine_gets_shorter_retrainings():
    known, job = retrainings()
    slow = replace(known, measured={"loft4-seed0-pretrain": Measured(60, 1.0)})
    assert slow.choose_rounds(job, 120) == known.choose_rounds(job, 60) == 50


def test_a_length_that_is_fixed_is_not_chosen():
    known, job = retrainings(least_rounds=None)
    assert known.choose_rounds(job, 10) is None
    assert known.left(job) == 40
