"""The costs of a setting: what is predicted is what the compiled programs hold, and the command shows all of it."""

import csv
import io
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import tiny
from helpers.runs import config_of

from loft_jax.config.command_line import run_command
from loft_jax.cost.__main__ import main
from loft_jax.cost.methods import Costs
from loft_jax.cost.prediction import ParameterSplit
from loft_jax.cost.tables import as_rows, print_setting
from loft_jax.data.facts import Facts, dataset_facts
from loft_jax.errors import UserError
from loft_jax.retrain.retraining import _costs

CONFIG = config_of(train={"rounds": 20, "eval_every": 10, "checkpoint_every": 10, "snapshot_every": 5})
FACTS = Facts((8, 8, 1), 10, 1437, 360)


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loft_jax.cost.methods.make_model", lambda *_: tiny.MODEL)
        costs = Costs(CONFIG, FACTS, compiles=True)
    methods = [method for workers in (1, 2) for method in costs.methods(workers)]
    return as_rows([cost for _, make in methods for cost in make()])


def of(rows, method, momentum=None, event=None):
    named = [row for row in rows if (row["method"], row["momentum"]) == (method, momentum)]
    (row,) = [row for row in named if event in (None, row["bytes_event"])]
    return row


@pytest.mark.full
def test_every_method_has_its_rows(rows):
    assert [(row["method"], row["momentum"], row["bytes_event"]) for row in rows] == [
        ("plain SGD", None, None),
        ("LoFT-2, server", None, "sync"),
        *[("LoFT-2, psum", momentum, event) for momentum in ("carry", "reset") for event in ("sync", "evaluation")],
        *[
            ("LoFT-2, exchange", momentum, event)
            for momentum in ("carry", "reset")
            for event in ("sync", "evaluation", "assembly")
        ],
        ("local SGD-2", "carry", "sync"),
        ("local SGD-2", "carry", "evaluation"),
        ("data-parallel SGD-2", None, "step"),
        ("data-parallel SGD-2", None, "evaluation"),
        ("GPipe-2", None, "step"),
        ("GPipe-2", None, "assembly"),
    ]


@pytest.mark.full
def test_what_is_predicted_is_what_the_compiled_programs_hold(rows):
    measured = [row for row in rows if row["bytes_measured"] is not None]
    assert len(measured) == 14
    for row in measured:
        if row["bytes_event"] == "step":
            assert row["bytes_measured"] > row["bytes_total"], "norm statistics are not among the gradients"
        else:
            assert row["bytes_measured"] == row["bytes_total"]


@pytest.mark.full
def test_events_are_counted_over_the_whole_run(rows):
    assert of(rows, "LoFT-2, psum", "carry", "sync")["bytes_events"] == 20
    assert of(rows, "data-parallel SGD-2", event="step")["bytes_events"] == 40
    assert of(rows, "LoFT-2, exchange", "carry", "assembly")["bytes_events"] == 5, "rounds 0, 5, 10, 15 and 20"


def test_a_ticket_is_counted_as_a_retraining_counts_it_and_the_literatures_count_stands_beside(capsys):
    compact = tiny.MODEL.with_widths({group.name: group.width // 2 for group in tiny.MODEL.filter_groups()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loft_jax.cost.methods.make_model", lambda *_: compact)
        ((_, make),) = Costs(CONFIG, FACTS, compiles=False).methods(1)
    ours = as_rows(make())
    experiment = SimpleNamespace(
        config=CONFIG, model=compact, dataset=FACTS.placeholder(), method=SimpleNamespace(step=None)
    )
    assert ours[0]["flops"] == _costs(experiment, tiny.MODEL, timed=False)["flops_per_image"]
    assert ours[0]["flops_6_macs"] > ours[0]["flops"]
    print_setting(ours)
    assert "as 6 x MACs" in capsys.readouterr().out


@pytest.mark.full
def test_the_server_is_the_papers(rows):
    groups = tiny.MODEL.filter_groups()
    server, row = ParameterSplit.from_groups(tiny.MODEL, groups, FACTS.image_shape, 2), of(rows, "LoFT-2, server")
    assert row["bytes_total"] == 20 * server.server_bytes(2)
    assert 2 * (row["bytes_sent"] + row["bytes_received"]) == server.server_bytes(2)


@pytest.mark.full
def test_an_exchange_moves_less_than_a_sum_and_a_reset_less_than_a_carry(rows):
    sums, exchanges = (
        [of(rows, f"LoFT-2, {sync}", momentum, "sync")["bytes_total"] for momentum in ("carry", "reset")]
        for sync in ("psum", "exchange")
    )
    assert exchanges[0] < sums[0]
    assert exchanges[1] < sums[1]
    assert exchanges[1] < 0.52 * exchanges[0]


@pytest.mark.full
def test_a_worker_of_loft_needs_less_memory_than_plain_sgd_and_the_least_with_an_exchange(rows):
    psum, exchange = (of(rows, f"LoFT-2, {sync}", "reset", "sync") for sync in ("psum", "exchange"))
    assert exchange["memory_peak"] < psum["memory_peak"] < 0.95 * of(rows, "plain SGD")["memory_peak"]
    assert psum["memory_peak"] == psum["memory_resident"] + psum["memory_program"]
    data = (1437 + 180) * (8 * 8 + 4)
    assert psum["memory_resident"] > 4 * psum["parameters"] + data
    assert exchange["memory_resident"] < psum["memory_resident"]
    assert of(rows, "GPipe-2", event="step")["memory_peak"] > data


@pytest.mark.full
def test_sizes_are_those_of_what_a_worker_trains(rows):
    loft, gpipe = of(rows, "LoFT-2, psum", "carry", "sync"), of(rows, "GPipe-2", event="step")
    assert loft["parameters"] == of(rows, "plain SGD")["parameters_worker"]
    assert loft["parameters_worker"] < loft["parameters"]
    assert 0.5 < loft["flops_worker"] / loft["flops"] < 1
    assert gpipe["parameters_worker"] < gpipe["parameters"]
    # Forward again on the way back: a third more than half of the work.
    assert 0.5 < gpipe["flops_worker"] / gpipe["flops"] < 1


def test_what_the_model_does_not_allow_has_its_reason():
    methods = dict(Costs(CONFIG, FACTS, compiles=False).methods(3))
    with pytest.raises(UserError, match=r"loft\.workers=3: must divide every partitioned width \(8, 16\); try 2"):
        methods["LoFT-3, psum, momentum carry"]()
    with pytest.raises(UserError, match=r"gpipe\.stages=16: must be at most the 9 blocks"):
        dict(Costs(CONFIG, FACTS, compiles=False).methods(16))["GPipe-16"]()
    with pytest.raises(UserError, match=r"gpipe\.stages=8: each stage needs its own device"):
        dict(Costs(CONFIG, FACTS, compiles=False).methods(8))["GPipe-8"]()


@pytest.mark.full
def test_gpipes_bytes_over_those_of_a_method_are_those_of_training(rows):
    gpipe = of(rows, "GPipe-2", event="step")
    assert gpipe["gpipe_over_bytes"] == 1
    loft = of(rows, "LoFT-2, exchange", "reset", "sync")
    assert loft["gpipe_over_bytes"] == gpipe["bytes_total"] / loft["bytes_total"]
    assert of(rows, "LoFT-2, exchange", "reset", "assembly")["gpipe_over_bytes"] is None


def test_settings_that_do_not_go_with_a_method_have_their_reason():
    methods = dict(Costs(config_of(data={"batch_size": 6}), FACTS, compiles=False).methods(2))
    with pytest.raises(UserError, match=r"gpipe\.microbatches=4: must divide data\.batch_size=6; try 3"):
        methods["GPipe-2"]()


def test_the_papers_data_sets_are_known_and_others_are_read():
    facts = dataset_facts(config_of(data={"name": "imagenet2012"}))
    assert (facts.image_shape, facts.streamed) == ((224, 224, 3), True)
    assert facts.device_bytes(4, batches=96) == 96 * (224 * 224 * 3 + 4)
    cifar = dataset_facts(config_of(data={"name": "cifar10"}))
    assert (cifar.streamed, cifar.device_bytes(4, batches=96)) == (False, 52_500 * (32 * 32 * 3 + 4))
    forced = dataset_facts(config_of(data={"name": "cifar10", "loading": "stream"}))
    assert (forced.streamed, forced.device_bytes(4, batches=96)) == (True, 96 * (32 * 32 * 3 + 4))
    with pytest.raises(UserError, match=r"data\.loading=device: imagenet2012 has images of mixed sizes"):
        dataset_facts(config_of(data={"name": "imagenet2012", "loading": "device"}))
    assert dataset_facts(config_of()) == FACTS


def cost(*arguments):
    return subprocess.run([sys.executable, "-m", "loft_jax.cost", *arguments], capture_output=True, text=True)


@pytest.mark.full
def test_the_command_prints_rows_for_programs():
    done = cost("--config", "configs/digits.yaml", "--no_compile", "--format", "csv", "--workers", "2", "3")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {row["method"] for row in rows if row["workers"] == "2"} >= {"LoFT-2, exchange", "GPipe-2", "local SGD-2"}
    assert {row["memory_peak"] for row in rows} == {""}
    assert "LoFT-3, psum, momentum carry is missing: loft.workers=3: must divide" in done.stderr


def test_the_settings_own_number_of_workers_is_among_the_default_ones(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "loft_jax.cost.__main__.compute_costs", lambda config, numbers, compiles: asked.append(numbers) or ([], [])
    )
    monkeypatch.setattr("loft_jax.cost.tables.as_rows", lambda costs: [{"workers": 1}])
    argv = ["cost", "--config", "configs/digits.yaml", "--format", "csv", "--loft.workers", "16"]
    monkeypatch.setattr(sys, "argv", argv)
    main()
    monkeypatch.setattr(sys, "argv", [*argv[:5], "--gpipe.stages", "3"])
    main()
    assert [set(numbers) for numbers in asked] == [{1, 2, 4, 8, 16}, {1, 2, 3, 4, 8}]


@pytest.mark.full
def test_the_tables_for_people_hold_every_method(rows, capsys):
    print_setting(rows)
    said = capsys.readouterr().out
    for word in ("LoFT-2, server", "LoFT-2, exchange", "GPipe-2", "peak memory", "GPipe / it", "assembly"):
        assert word in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --config FILE for what a setting costs, or --paper for the paper's table"),
        (["--paper", "--config", "configs/digits.yaml"], "--paper has settings of its own"),
        (["--paper", "--loft.workers", "2"], "--paper has settings of its own"),
        (["--paper", "--workers", "2"], "--paper has settings of its own"),
        (["--paper", "--no_compile"], "--paper has settings of its own"),
        (["--config", "configs/digits.yaml", "--workers", "0"], "--workers: 0: must be a whole number of at least 1"),
        (["--config", "configs/digit.yaml"], "no such file; did you mean configs/digits.yaml?"),
    ],
)
def test_bad_input_is_refused(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cost", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
