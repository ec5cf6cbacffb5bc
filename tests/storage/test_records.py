"""Objects in files: their schema and checksum, and what is said of a file that is not what was written."""

import json
import os
import re

import pytest

from loft_jax.storage.metrics import JsonLines, describe_rounds, missing_rounds
from loft_jax.storage.records import (
    Count,
    NonNegative,
    Schema,
    Share,
    Text,
    UnsoundError,
    line_of,
    read_lines,
    read_object,
    write_object,
)

SCHEMA = Schema(needed={"a/b": Share, "n": Count}, optional={"more": list[Count]})
GOOD = {"a/b": 0.123456789, "n": 3, "free": {"of": [1, None]}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "object.json"


def test_an_object_is_read_back_with_its_checksum(path):
    written = write_object(path, GOOD)
    assert read_object(path, SCHEMA) == written == {**GOOD, "checksum": written["checksum"]}
    assert write_object(path, written) == written, "the checksum is not of itself"


def test_an_object_without_a_checksum_is_believed_and_one_that_is_missing_is_none(path):
    assert read_object(path, SCHEMA) is None
    path.write_text(json.dumps(GOOD))
    assert read_object(path, SCHEMA) == GOOD


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a/b": None}, "a/b: null: must be a valid number"),
        ({"a/b": "0.5"}, "a/b: '0.5': must be a valid number"),
        ({"a/b": True}, "a/b: true: must be a valid number"),
        ({"a/b": 1.5}, "a/b: 1.5: must be less than or equal to 1"),
        ({"a/b": 10**400}, "a/b: 1000"),
        ({"n": -1}, "n: -1: must be greater than or equal to 0"),
        ({"n": [3]}, r"n: \[3\]: must be a valid integer"),
        ({"more": [1, "x"]}, "more.1: x|more.1: 'x'"),
        ({"free": 2}, r"has been changed since it was written \(its checksum does not match\)"),
        ({"a/b": 0.2}, "has been changed since it was written"),
        ({"checksum": None}, "has been changed"),
        ({"checksum": "1"}, "has been changed"),
    ],
)
def test_a_changed_value_is_found_and_named(change, said, path):
    path.write_text(json.dumps(write_object(path, GOOD) | change))
    with pytest.raises(UnsoundError, match=f"object.json: ({said})"):
        read_object(path, SCHEMA)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no JSON"),
        ('{"a/b": 0.1', "is no JSON"),
        ("\xff", "is no JSON"),
        ("null", "holds null, and not an object"),
        ("[1]", "holds \\[1\\], and not an object"),
        ('{"n": 3}', "a/b is missing"),
        ('{"a/b": NaN, "n": 3}', "NaN is no number"),
        ('{"a/b": 1e999, "n": 3}', "must be"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a/b":' * 100_000, "is nested too deeply"),
    ],
)
def test_a_text_that_is_no_such_object_is_named(text, said, path):
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UnsoundError, match=f"object.json: .*{said}"):
        read_object(path, SCHEMA)


def test_what_is_no_file_is_named_and_put_aside_when_it_is_written(path):
    path.mkdir()
    with pytest.raises(UnsoundError, match=r"cannot be read \(Is a directory\)"):
        read_object(path, SCHEMA)
    write_object(path, GOOD)
    assert read_object(path, SCHEMA)
    assert path.with_name("object.json.damaged").is_dir()
    path.unlink()
    os.symlink(path, path)
    with pytest.raises(UnsoundError, match=r"cannot be read \(Too many levels of symbolic links\)"):
        read_object(path, SCHEMA)


@pytest.fixture
def rows(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl", "mine")
    for number in range(4):
        lines.append({"round": number, "epoch": number / 3, "test/accuracy": number / 7})
    return lines


def edited(rows, change):
    path = rows._path
    path.write_text("".join(json.dumps(change(json.loads(line))) + "\n" for line in path.read_text().splitlines()))


def test_rows_that_a_table_library_has_written_again_are_the_same(rows):
    """Missing values as null, whole numbers as floats, and the last digits of the others lost."""
    before = rows.rows()
    edited(
        rows, lambda row: {**row, "round": float(row["round"]), "epoch": round(row["epoch"], 10), "train/loss": None}
    )
    again, problems = rows.read()
    assert problems == []
    assert [row["round"] for row in again] == [0, 1, 2, 3]
    assert all(isinstance(row["round"], int) and "train/loss" not in row for row in again)
    assert [row["epoch"] for row in again] == pytest.approx([row["epoch"] for row in before], abs=1e-9)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("epoch", None, "was changed after it was written"),
        ("epoch", -1, "epoch: -1: must be greater than or equal to 0"),
        ("epoch", "1", "epoch: '1': must be a finite number|epoch: 1: must be a finite number"),
        ("epoch", [1], r"epoch: \[1\]: must be a finite number"),
        ("epoch", 10**400, "epoch: .*: must be a finite number"),
        ("test/accuracy", 0.9, "was changed after it was written"),
        ("test/accuracy", 1.01, "test/accuracy: 1.01: must be less"),
        ("round", None, "round is missing"),
        ("round", 2.5, "round: 2.5: must be a valid integer"),
        ("round", 5, "was changed after it was written"),
        ("seconds/train", -1.0, "seconds/train: -1.0: must not be negative"),
        ("checksum", 1, "was changed after it was written"),
    ],
)
def test_a_spoilt_row_is_left_out_and_named(key, value, said, rows):
    edited(rows, lambda row: row | ({key: value} if row["round"] == 2 else {}))
    found, (problem,) = rows.read()
    assert [row["round"] for row in found] == [0, 1, 3]
    assert problem.startswith("line 3: ")
    assert re.search(said, problem)


def test_rows_of_another_run_are_not_believed_and_those_without_checksums_are(rows, tmp_path):
    assert JsonLines(rows._path, "other").read()[0] == []
    edited(rows, lambda row: {key: value for key, value in row.items() if key != "checksum"})
    assert len(JsonLines(rows._path, "other").rows()) == 4


def test_rows_that_are_there_twice_count_once_and_contradictions_not_at_all(rows):
    with open(rows._path, "a") as file:
        file.write(rows._path.read_text())
    assert [row["round"] for row in rows.rows()] == [0, 1, 2, 3]
    rows.append({"round": 1, "epoch": 9.0})
    found, (problem,) = rows.read()
    assert [row["round"] for row in found] == [0, 2, 3]
    assert problem == "round 1 is there 3 times, with different values"


def test_a_row_that_a_killed_process_left_half_is_not_mentioned_and_an_empty_line_is_nothing(rows):
    with open(rows._path, "a") as file:
        file.write('\n\n{"round": 4, "epo')
    assert [row["round"] for row in rows.rows()] == [0, 1, 2, 3]
    assert rows.read()[1] == []


def test_rounds_that_have_no_row_are_named():
    assert missing_rounds([{"round": 0}, {"round": 3}], 4) == [1, 2, 4]
    some = ([2], [2, 3], [2, 3, 4], [2, 4], range(0, 20, 2))
    assert list(map(describe_rounds, some)) == ["2", "2, 3", "2 to 4", "2, 4", "0 to 18, 10 of them"]


def test_a_spoilt_line_is_said_and_those_behind_it_stay(tmp_path):
    schema, path = Schema(needed={"what": Text}, optional={"ratio": NonNegative}), tmp_path / "rows.jsonl"
    good = [{"what": "a", "ratio": 1.5}, {"what": "b", "machine": {"cores": 2}}]
    spoilt = [b'{"what": "x"', b"[]", b'{"what": null}', b'{"what": "x", "ratio": -1}', b"\xff"]
    spoilt.append(line_of(good[0]).strip().replace("1.5", "2.5").encode())
    path.write_bytes(line_of(good[0]).encode() + b"\n".join(spoilt) + b"\n" + line_of(good[1]).encode())
    rows, problems = read_lines(path, schema)
    assert rows == good
    assert [problem.split(":")[1] for problem in problems] == [f" line {n}" for n in range(2, 8)]
    assert problems[-1].endswith("(its checksum does not match)")
    # As other programs and earlier versions write it.
    path.write_text('{"what": "a"}\n')
    assert read_lines(path, schema) == ([{"what": "a"}], [])
    assert read_lines(tmp_path / "none", schema) == ([], [])
    assert read_lines(tmp_path, schema) == ([], [f"{tmp_path}: cannot be read (Is a directory)"])
