"""What a report reads of runs in every state, and what it says of what is not there."""

import datetime
import json
import random

import jax
import numpy as np
import pytest
from helpers.fake_runs import complete_run, fake_run, fake_search, read

import loft_jax
from loft_jax.report.page import render
from loft_jax.storage.records import write_object
from loft_jax.tickets.ticket import read_ticket


def test_a_complete_run_has_nothing_missing(tmp_path):
    run = read(complete_run(tmp_path / "run"))
    assert run.missing == []
    assert run.search.rounds.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert run.search.epochs.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert run.search.own_end
    assert [row["method"] for row in run.costs] == ["LoFT-4", "GPipe-4"]
    assert {(row["ratio"], row["mode"], row["ticket_round"]) for row in run.retrained} == {
        *((0.0, "rewind", 12), (0.8, "rewind", 12), (0.8, "random", 12), (0.5, "rewind", 12), (0.8, "rewind", 4)),
    }


def test_the_kept_filters_are_those_of_the_tickets(tmp_path):
    run = read(complete_run(tmp_path / "run"))
    kept = run.kept(0.5)
    ticket = read_ticket(run.directory.tickets / "r4-group-l2-0.5")
    for group, mask in kept.items():
        assert np.flatnonzero(mask[2]).tolist() == ticket.kept[group]
        # A ticket of half of the filters is the better half of the ranking.
        assert (run.search.rankings[group][2][mask[2]] <= mask.shape[1] / 2).all()
    assert run.kept(0.3) == {}


def test_a_run_that_has_only_begun_says_what_is_not_there(tmp_path):
    run = read(fake_run(tmp_path / "run", finished=False))
    assert run.search is None
    assert [line.split(";")[0] for line in run.missing] == [
        "the run has not finished: 6 of 12 rounds are done",
        "no tickets have been searched",
        "no ticket has been retrained",
        "no costs have been computed",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rankings.npz", b"PK\x03\x04", "the ticket search cannot be read"),
        ("overlaps.npz", b"", "the ticket search cannot be read"),
        ("distances.csv", b"run,group\n", "the ticket search cannot be read"),
        ("search.json", b"{", "the ticket search cannot be read"),
        ("search.json", b"[]", "the ticket search cannot be read"),
        ("search.json", None, "no tickets have been searched"),
        ("cost.csv", b"\xff", "cost.csv cannot be read"),
        ("cost.csv", b"method,bytes_total\nLoFT-4,1,2\n", "its rows differ in length"),
        ("cost.csv", b"method,bytes_total\nLoFT-4,1\nGPipe-4\n", "its rows differ in length"),
        ("search.json", b'{"reference_round": 12, "reference": "x", "ratios": [0.8]}', "search.json: scope is missing"),
        (
            "retrain/r12-group-l2-0.8/random/seed0/summary.json",
            b"{}",
            "summary.json: model is missing; the same retrain",
        ),
        ("summary.json", b"{", "the run has not finished"),
        ("summary.json", b"{", "summary.json: is no JSON"),
        ("metrics.jsonl", b'{"round": 0, "epo', "metrics.jsonl has no rows, although the run is finished"),
        ("metrics.jsonl", b"[]\n", "metrics.jsonl: line 1: holds [], and not an object; it is left out"),
        ("retrain/r12-group-l2-0.8/random/seed0/summary.json", b"{", "seed0/summary.json: is no JSON"),
        ("cost.csv", b"", "no costs have been computed"),
        ("cost.csv", b"method,bytes_total\n", "no costs have been computed"),
        ("cost.csv", b"method,bytes_total\nLoFT-4,-1\n", "bytes_total: -1 must be a number"),
    ],
)
def test_a_damaged_file_is_a_line_not_the_end(name, content, said, tmp_path):
    directory = complete_run(tmp_path / "run")
    (directory.path / name).unlink() if content is None else (directory.path / name).write_bytes(content)
    assert said in "\n".join(read(directory).missing)


@pytest.mark.full
def test_no_damage_to_the_arrays_is_the_end(tmp_path):
    directory = complete_run(tmp_path / "run")
    content, moments = directory.overlaps.read_bytes(), random.Random(0)
    for position in [*range(200), *moments.sample(range(len(content)), 200), *range(len(content) - 200, len(content))]:
        directory.overlaps.write_bytes(content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :])
        run = read(directory)
        assert "the ticket search cannot be read (" in run.missing[0]
    np.savez_compressed(directory.rankings, rounds=np.arange(3))
    assert "rankings.npz: is damaged, or of another search" in read(directory).missing[0]


def test_commands_that_are_offered_can_be_pasted_into_a_shell(tmp_path):
    directory = fake_run(tmp_path / "my run")
    path = f"'{directory.path}'"
    (search, retrain, cost) = read(directory).missing
    assert search.endswith(f"python -m loft_jax.tickets {path}")
    assert retrain.endswith(f"python -m loft_jax.retrain {path} --ticket NAME")
    assert cost.endswith(f"--config '{directory.path}/config.yaml' > '{directory.path}/cost.csv'")


def test_a_search_that_was_written_while_it_was_read_is_not_believed(tmp_path):
    directory = complete_run(tmp_path / "run")
    before = directory.distances.read_bytes()
    fake_search(directory, snapshots=4)
    directory.distances.write_bytes(before)
    run = read(directory)
    assert run.search is None
    assert "is damaged, or of another search" in run.missing[0]


def test_a_search_for_other_ratios_that_is_written_while_it_is_read_is_not_believed(tmp_path):
    directory = complete_run(tmp_path / "run")
    before = directory.search.read_bytes()
    fake_search(directory, ratios=(0.3,))
    directory.search.write_bytes(before)
    assert "is damaged, or of another search" in read(directory).missing[0]


def test_a_run_that_has_gone_on_since_its_search_says_so(tmp_path):
    directory = fake_run(tmp_path / "run")
    fake_search(directory)
    directory.append({"round": 13, "step": 208, "epoch": 6.5, "train/loss": 0.1})
    assert "the ticket search ends at round 12; search again for later snapshots" in read(directory).missing


def test_a_search_against_another_round_of_the_run_is_not_of_its_own_end(tmp_path):
    directory = complete_run(tmp_path / "run")
    options = json.loads(directory.search.read_text())
    assert options["reference_round"] == 12
    write_object(directory.search, options | {"reference_round": 4})
    assert not read(directory).search.own_end


def test_a_page_says_when_and_by_what_it_was_made():
    page = render("a report", [])
    assert f"Made on {datetime.date.today()} by loft_jax {loft_jax.__version__}, jax {jax.__version__}" in page
