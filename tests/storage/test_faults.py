"""Every file of a finished campaign, damaged in every way, and every command that reads it.

A command says what it did about it, and names the file or its directory; or what it gives is what it gave before.
"""

import json
import shutil
from collections import Counter

import pytest
from helpers.faults import COMMANDS, campaign, field_faults, files_of, outcome, restore, whole_faults

# Files that commands write for people and other programs, and do not read.
NOT_READ = {"retrain/results.csv"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two campaigns, of seeds 0 and 1; and what each command says to the first."""
    path = tmp_path_factory.mktemp("faults")
    run, other = campaign(path, seed=0), campaign(path / "other", seed=1)
    sound = path / "sound"
    shutil.copytree(run.path, sound)
    said = {command: outcome(command, run.path) for command in COMMANDS}
    assert {command: end for command, (end, _) in said.items()} == {
        **dict.fromkeys(("train", "retrain", "report", "study"), "done"),
        "tickets": "goes on",
    }
    return run.path, other.path, sound, said


def check(place, file, faults, every=True):
    """Count the ends of every command for each fault of a file, or of one in turn; raise if one is wrong silently."""
    run, _, sound, before = place
    ends, silent = Counter(), []
    readers = FILES[file].split()
    for number, (name, fault) in enumerate(faults):
        for command in readers if every else [readers[number % len(readers)]]:
            restore(sound, run, file)
            fault()
            end, said = outcome(command, run)
            names = file.rpartition("/")[2] in said or str((run / file).parent) in said
            names = names or (end == "refused" and (run / file).parent.name in said)
            # What is not there is made again, which needs no word.
            names = names or (name == "missing" and (end == "goes on" or "not finished" in said or command == "study"))
            same = (end, said) == before[command]
            if not (same or names):
                silent.append((command, file, name, end, said[-300:]))
            ends[end if not same else "as before"] += 1
    restore(sound, run, file)
    assert silent == []
    return ends


RETRAINING = "retrain/r12-group-l2-0.8/rewind/seed1"
# What reads which file.
FILES = {
    "config.yaml": "train tickets retrain report study",
    "data.json": "report",
    "metrics.jsonl": "report retrain",
    "summary.json": "train retrain report study",
    "cost.csv": "report",
    "search.json": "report study",
    "distances.csv": "report study",
    "rankings.npz": "report",
    "overlaps.npz": "report",
    "tickets/r12-group-l2-0.8/ticket.json": "retrain report",
    f"{RETRAINING}/metrics.jsonl": "retrain",
    f"{RETRAINING}/config.yaml": "retrain report",
    f"{RETRAINING}/summary.json": "retrain report",
    f"{RETRAINING}/ticket.json": "retrain report",
}


def test_every_file_of_a_campaign_is_damaged_here(place):
    assert set(files_of(place[0])) - set(FILES) <= {*NOT_READ, ".lock", ".lock.owner"}


@pytest.mark.full
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_said_or_harmless(file, place):
    run, other, *_ = place
    # What people write themselves has no checksum: a changed digit is their own.
    flips = 0 if file == "cost.csv" else 3
    faults = [
        f for f in whole_faults(run / file, other / file, flips) if (file, f[0]) != ("cost.csv", "of another run")
    ]
    ends = check(place, file, faults)
    assert ends.total() == len(faults) * len(FILES[file].split())
    # Rows of a finished retraining are read when it goes on.
    assert (ends["as before"] < ends.total()) == (file != f"{RETRAINING}/metrics.jsonl")


OBJECTS = [file for file in FILES if file.rpartition(".")[2] in ("json", "jsonl")]


@pytest.mark.full
@pytest.mark.parametrize("file", OBJECTS)
def test_a_changed_field_is_said_or_harmless(file, place):
    # Its readers in turn, of which there are at most four for six values of each field.
    check(place, file, list(field_faults(place[0] / file)), every=False)


@pytest.mark.campaign
@pytest.mark.parametrize("file", FILES)
def test_every_reader_of_every_changed_field_and_of_thirty_flipped_bytes(file, place):
    run, other, *_ = place
    check(place, file, list(field_faults(run / file)) if file in OBJECTS else [])
    flips = [f for f in whole_faults(run / file, other / file, 30) if "flipped" in f[0] and file != "cost.csv"]
    check(place, file, flips)


@pytest.mark.full
def test_a_changed_field_of_an_older_file_without_a_checksum_is_no_traceback(place):
    """Its values are checked all the same; those that could be true are believed."""
    run, _, sound, _ = place
    of_retraining = f"{RETRAINING}/summary.json"
    readers = {"summary.json": "train", "search.json": "study", "data.json": "report", of_retraining: "report"}
    for file, command in readers.items():
        fields = json.loads((sound / file).read_text())
        del fields["checksum"]
        for key in fields:
            for value in (None, "x", {"x": 1}, 10**400, -5, True):
                (run / file).write_text(json.dumps({**fields, key: value}))
                outcome(command, run)
        restore(sound, run, file)
