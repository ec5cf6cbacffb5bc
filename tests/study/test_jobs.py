"""The jobs of a study: their names, order, needs, chains and tasks."""

from helpers.studies import changed

from loft_jax.study.jobs import expand, task_of
from loft_jax.study.study import Study


def jobs_of(**keys):
    return expand(Study.of(changed(**keys), "s.yaml"))


def test_without_an_order_checks_come_first_and_then_each_seed_with_each_setting():
    assert [job.name for job in jobs_of()] == [
        "speed",
        *(f"{s}-seed{k}-{step}" for k in (0, 1) for s in ("loft4", "sgd") for step in ("pretrain", "tickets", "at80")),
    ]


def test_what_needs_another_step_comes_after_it_and_others_stay_as_they_are():
    at50 = {"kind": "retrain", "seconds": 1, "ratios": [0.5]}
    order = [{"settings": ["sgd"], "seeds": [0], "steps": ["at50", "tickets", "at80", "pretrain"]}]
    names = [job.step_name for job in jobs_of(steps__at50=at50, order=order)]
    assert names == ["pretrain", "tickets", "at50", "at80"]


def test_the_order_is_the_order_of_worth():
    order = [
        {"settings": ["loft4"], "seeds": [0]},
        "speed",
        {"settings": ["sgd"], "seeds": [0], "steps": ["pretrain"]},
        {"seeds": [7], "steps": ["pretrain", "tickets"]},
        {"settings": ["sgd"], "seeds": [0], "steps": ["tickets"]},
    ]
    names = [job.name for job in jobs_of(order=order)]
    assert names == [
        *("loft4-seed0-pretrain", "loft4-seed0-tickets", "loft4-seed0-at80", "speed", "sgd-seed0-pretrain"),
        *("loft4-seed7-pretrain", "loft4-seed7-tickets", "sgd-seed7-pretrain", "sgd-seed7-tickets"),
        "sgd-seed0-tickets",
    ]


def test_a_job_needs_the_run_and_the_tickets_that_it_works_on():
    jobs = {job.name: job for job in jobs_of(steps__later={"kind": "tickets", "seconds": 1, "scope": "global"})}
    assert jobs["speed"].needs == jobs["loft4-seed0-pretrain"].needs == ()
    assert jobs["loft4-seed1-tickets"].needs == ("loft4-seed1-pretrain",)
    assert jobs["sgd-seed0-at80"].needs == ("sgd-seed0-pretrain", "sgd-seed0-tickets")
    assert jobs["sgd-seed0-later"].needs == ("sgd-seed0-pretrain",)


def test_a_retraining_needs_the_search_that_draws_its_tickets():
    of_all = {"kind": "tickets", "seconds": 1, "ratios": [0.9, 0.8], "scope": "global", "norm": "l1"}
    steps = {"global9": {**of_all, "ratios": [0.9]}, "global98": of_all}
    steps["at80g"] = {**of_all, "kind": "retrain", "ratios": [0.8]}
    jobs = {job.name: job for job in jobs_of(**{f"steps__{name}": step for name, step in steps.items()})}
    assert jobs["sgd-seed0-at80g"].needs == ("sgd-seed0-pretrain", "sgd-seed0-global98")


def test_the_declared_seconds_may_be_those_of_a_setting():
    jobs = {job.name: job.seconds for job in jobs_of()}
    assert (jobs["loft4-seed0-pretrain"], jobs["sgd-seed1-pretrain"], jobs["speed"]) == (30, 20, 10)


def test_tasks_are_whole_runs_and_together_all_jobs():
    jobs = jobs_of()
    for count in (1, 2, 3, 5, 9):
        tasks = [task_of(jobs, number, count) for number in range(count)]
        assert sorted(job.name for task in tasks for job in task) == sorted(job.name for job in jobs)
        for task in tasks:
            names = {job.name for job in task}
            assert all(set(job.needs) <= names for job in task)
    assert [job.name for job in task_of(jobs, 1, 5)] == [f"loft4-seed0-{s}" for s in ("pretrain", "tickets", "at80")]


def test_what_a_job_is_says_its_settings_and_its_seed_and_not_its_times():
    one = {job.name: job for job in jobs_of()}
    times = {"steps__pretrain__seconds": 99, "steps__at80__start_seconds": 3, "steps__at80__limit": 5}
    for name, job in {job.name: job for job in jobs_of(**times)}.items():
        assert job.identity() == one[name].identity()
    pretrain, seeded = one["loft4-seed0-pretrain"].identity(), one["loft4-seed1-pretrain"].identity()
    assert {key for key in pretrain if pretrain[key] != seeded[key]} == {"seed"}
    assert (pretrain["train.rounds"], pretrain["loft.workers"]) == (4, 4)
    assert "train.eval_every" not in pretrain
    assert one["loft4-seed0-at80"].identity()["ratios"] == [0.8]
    retraining = {"rounds": 8, "least_rounds": 2, "settings": {"optimizer": {"learning_rate": 0.2}}}
    retraining["settings"]["train"] = {"eval_every": 7}
    other = {job.name: job.identity() for job in jobs_of(retraining=retraining)}
    changed_keys = {key: value for key, value in other["loft4-seed0-at80"].items() if key.startswith("retraining")}
    assert changed_keys == {"retraining.rounds": 8, "retraining.settings.optimizer.learning_rate": "0.2"}
    assert other["loft4-seed0-tickets"] == one["loft4-seed0-tickets"].identity()
