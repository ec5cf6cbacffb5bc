"""The bad-input matrix: every field of the config and every command, each wrong in every way that its type allows.

Values that no field of a type may have are derived from the fields, so a new field is in the matrix by itself; texts
and rules between fields need a row by hand, and a test fails until there is one.
"""

import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic.fields import FieldInfo
from refused import AcceptedError, outcome, refusal, rules_of

from loft_jax.cli import _fields
from loft_jax.config import Config, flatten
from loft_jax.run_directory import RunDirectory
from loft_jax.sections import Section
from loft_jax.ticket import Ticket

PACKAGE = Path(__file__).resolve().parents[1] / "loft_jax"
FIELDS = dict(_fields(Config))
SECTIONS = [key for key, field in Config.model_fields.items() if isinstance(field.default, Section)]
TICKET = "r4-group-l2-0.5"
LONG = "x" * 300


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory to be in: c.yaml, a run `run` that only looks trained, an empty directory `empty`, a file `file`."""
    path = tmp_path_factory.mktemp("bad_input")
    patch = pytest.MonkeyPatch()
    patch.chdir(path)
    directory = untrained("run")
    for saved in (0, 4):
        (directory.snapshots / str(saved)).mkdir(parents=True)
    ticket = Ticket({"stage2/block1": [0, 1]}, 0.5, "group", "l2", 4, "run", Config().hash())
    ticket.write(directory.tickets / ticket.name)
    (path / "c.yaml").write_text("seed: 1\n")
    (path / "empty").mkdir()
    (path / "file").write_text("not a mapping")
    (path / "latin.yaml").write_bytes(b"seed: \xff")
    yield path
    patch.undo()


def untrained(name: str) -> RunDirectory:
    """A run of the default config that has been started only, by nobody who is still there."""
    directory = RunDirectory(name)
    directory.path.mkdir()
    (directory.path / "config.yaml").write_text(yaml.safe_dump(Config().model_dump()))
    return directory


# --- every field -----------------------------------------------------------------------------------------------------


def parts(field: FieldInfo) -> tuple[Any, list[Any], bool]:
    """A field's type without null, the constraints on it, and whether it may be null."""
    annotation, constraints = field.annotation, list(field.metadata)
    members = get_args(annotation) if type(None) in get_args(annotation) else (annotation,)
    (member,) = (m for m in members if m is not type(None))
    if hasattr(member, "__metadata__"):
        constraints += [c for m in member.__metadata__ for c in (m.metadata if isinstance(m, FieldInfo) else [m])]
        member = get_args(member)[0]
    return member, constraints, type(None) in members


def wrong_types(field: FieldInfo) -> list[Any]:
    """Values of every other type."""
    kind, _, optional = parts(field)
    never = [{"a": 1}, b"1"] if optional else [None, {"a": 1}, b"1"]
    if get_origin(kind) is Literal:
        return [*never, "nonsense", "", " ", "a\nb", 5, True, [get_args(kind)[0]], LONG]
    not_numbers = [
        "two",
        "",
        " ",
        "0x10",
        "\u0661\u0662",
        "1e",
        "None",
        True,
        False,
        [1],
        math.nan,
        math.inf,
        -math.inf,
        LONG,
    ]
    return (
        never
        + {
            int: [*not_numbers, 2.5, "2.5", 10**40, -(10**40), "9" * 5000],
            float: [*not_numbers, "nan", "inf", "1e999", 10**400],
            bool: ["maybe", "", " ", 2, -1, 0.5, [True], math.nan, LONG],
            str: [5, 2.5, True, "", " ", "a\nb", "a\0b", "\x1b[31m"],
        }[kind]
    )


def out_of_range(field: FieldInfo) -> list[Any]:
    """Values just outside each bound."""
    kind, constraints, _ = parts(field)
    if kind not in (int, float):
        return []
    step, bounds = 1 if kind is int else 1e-6, {}
    for constraint in constraints:
        bounds |= {name: getattr(constraint, name) for name in ("ge", "gt", "le", "lt") if hasattr(constraint, name)}
    assert bounds.keys() & {"ge", "gt"}, "a number needs a lower bound"
    assert kind is float or bounds.keys() & {"le", "lt"}, "a whole number needs an upper bound"
    past = {"ge": -step, "gt": 0, "le": step, "lt": 0}
    return [bound + past[name] for name, bound in bounds.items()]


# What no text of a field may be, beside what no text may be.
WRONG_TEXTS = {
    "data.name": ["../digits", "/etc", "a//b", "a/", "/", ".", "a/../b", "di gits", "dígits", "mnist:3.0.1", LONG],
    "data.data_dir": [LONG, "a/" * 600, "a\tb", "\x7f", "\ud800"],
    "distributed.coordinator": ["host", ":1", "host:", "host:0", "host:65536", "host:\u0661", "host:-1", "a b:1", LONG],
    "gpipe.cuts": [
        "balancd",
        "stage2",
        "stage2/block1,",
        ",",
        "stage\u0662/block1",
        "stage2/block1;stage3/block1",
        [],
        [3],
    ],
}


def nested(key: str, value: Any) -> dict[str, Any]:
    *section, leaf = key.split(".")
    return {section[0]: {leaf: value}} if section else {leaf: value}


@pytest.mark.parametrize("key", FIELDS)
def test_a_field_refuses_what_is_no_value_of_it(key, place):
    values = wrong_types(FIELDS[key]) + out_of_range(FIELDS[key]) + WRONG_TEXTS.get(key, [])
    for value in values:
        (place / "wrong.yaml").write_text(yaml.safe_dump(nested(key, value)))
        said = refusal("train", "--config", "wrong.yaml", "--workdir", "w")
        assert said.startswith((f"wrong.yaml: {key}=", "--config wrong.yaml: ")), (value, said)
        assert "\n" not in said, value
        assert len(said) < 900, value
        if isinstance(value, str | int | float) and len(str(value)) < 100:
            assert str(value) in said or repr(value) in said, (value, said)
        if isinstance(value, str) and "\0" not in value:
            said = refusal("train", f"--{key}={value}", "--workdir", "w")
            assert said.startswith(f"command line: {key}="), (value, said)
    assert not (place / "w").exists()


def test_every_text_has_rows_of_its_own():
    assert set(WRONG_TEXTS) == {key for key, field in FIELDS.items() if parts(field)[0] is str}
    assert list(FIELDS) == list(flatten(Config()))


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if parts(field)[0] in (int, float, bool)])
def test_a_field_is_given_on_the_command_line_without_its_value(key, place):
    assert refusal("train", f"--{key}") == f"argument --{key}: expected one argument; see --help"


@pytest.mark.parametrize("value", [3, 2.5, "nonsense", [1], True, [], b"1"])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_refuses_what_is_no_mapping(section, value, place):
    (place / "wrong.yaml").write_text(yaml.safe_dump({section: value}))
    said = refusal("train", "--config", "wrong.yaml", "--workdir", "w")
    # A section may have a short form, of which the value is then a wrong one.
    assert said.startswith((f"wrong.yaml: {section}=", f"wrong.yaml: {section}.")), said
    assert "\n" not in said


@pytest.mark.parametrize("section", ["", *SECTIONS])
def test_an_unknown_key_is_refused_in_every_section(section, place):
    for key in ("xyzzy", 1, None, 2.5, True, "a\nb", LONG):
        (place / "wrong.yaml").write_text(yaml.safe_dump({section: {key: 1}} if section else {key: 1}))
        said = refusal("train", "--config", "wrong.yaml", "--workdir", "w")
        assert said.startswith("wrong.yaml: unknown key ")
        assert "\n" not in said
    option = f"--{section}.xyzzy" if section else "--xyzzy"
    assert refusal("train", option, "1").startswith(f"unknown option {option}")


# --- rules between fields, and of model, devices and data ------------------------------------------------------------

# Options, and how the message begins.
RULES = {
    "batch over devices": ("--data.batch_size 34 --mesh.data 4", "data.batch_size=34: must be a multiple"),
    "steps over int32": (
        "--train.rounds 134217728",
        "train.rounds=134217728: with loft.local_steps=16 makes 2147483648",
    ),
    "workers over devices": ("--mesh.worker 3", "mesh.worker=3: must divide loft.workers=4; try 2"),
    "stop that never holds": (
        "--train.stop_when 1 --train.rounds 10",
        "train.stop_snapshots=3: train.stop_when could never hold",
    ),
    "GPipe and LoFT": ("--gpipe.stages 2 --loft.workers 4", "gpipe.stages=2: is GPipe, which trains the full CNN"),
    "micro-batches": ("--gpipe.stages 2 --gpipe.microbatches 5", "gpipe.microbatches=5: must divide"),
    "nearest micro-batches": (
        "--gpipe.stages 2 --data.batch_size 1000000 --gpipe.microbatches 999",
        "gpipe.microbatches=999: must divide data.batch_size=1000000; try 1000",
    ),
    "micro-batches of a huge batch": (
        "--gpipe.stages 2 --data.batch_size 2147483647 --gpipe.microbatches 2147483646",
        "gpipe.microbatches=2147483646: must divide data.batch_size=2147483647; try 2147483647",
    ),
    "number of cuts": ("--gpipe.stages 3 --gpipe.cuts stage1/block1", "gpipe.cuts=stage1/block1: must name 2 blocks"),
    "a stage is a device": ("--gpipe.stages 2 --mesh.data 2", "mesh.data=2: a stage of GPipe is one device"),
    "a stage is one worker": ("--gpipe.stages 2 --mesh.worker 1 --mesh.data 4", "mesh.data=4: a stage of GPipe is one"),
    "a coordinator alone": (
        "--distributed.coordinator host:1",
        "distributed.coordinator=host:1: goes with distributed.processes and distributed.process_id",
    ),
    "processes without a coordinator": (
        "--distributed.processes 2 --distributed.process_id 0",
        "distributed.processes=2: goes with distributed.coordinator",
    ),
    "a coordinator, and auto": (
        "--distributed auto --distributed.coordinator host:1 --distributed.processes 2 --distributed.process_id 0",
        "distributed.mode=auto: finds out what distributed.coordinator=host:1 states",
    ),
    "a process past the last": (
        "--distributed.coordinator host:1 --distributed.processes 2 --distributed.process_id 2",
        "distributed.process_id=2: must be below distributed.processes=2",
    ),
}
# The same, once model, devices (four, here) and data are seen.
LATER_RULES = {
    "workers over widths": ("--loft.workers 3", "loft.workers=3: must divide every partitioned width"),
    "many workers": ("--loft.workers 2147483647", "loft.workers=2147483647: must divide every partitioned width"),
    "stages over blocks": ("--gpipe.stages 10", "gpipe.stages=10: must be at most the 9 blocks"),
    "cuts of the paper": ("--gpipe.stages 2 --gpipe.cuts paper", "gpipe.cuts=paper: the paper cuts"),
    "cut at no block": ("--gpipe.stages 2 --gpipe.cuts stage9/block1", "gpipe.cuts=stage9/block1: stage9/block1 is no"),
    "cut behind the last": (
        "--gpipe.stages 2 --gpipe.cuts stage3/block3",
        "gpipe.cuts=stage3/block3: stage3/block3 is",
    ),
    "cuts in order": (
        "--gpipe.stages 3 --gpipe.cuts stage2/block1,stage1/block1",
        "gpipe.cuts=stage2/block1,stage1/block1: must be in network order",
    ),
    "data over devices": ("--mesh.data 8", "mesh.data=8: only 4 cpu devices are there"),
    "stages over devices": ("--gpipe.stages 5", "gpipe.stages=5: each needs a device of its own, and 4"),
    "workers and data over devices": ("--mesh.worker 4 --mesh.data 2", "mesh.worker=4: with mesh.data=2 it needs 8"),
    "digits from a directory": ("--data.data_dir .", "data.data_dir: digits ships with scikit-learn"),
    "digits from files": ("--data.loading stream", "data.loading=stream: digits ships with scikit-learn"),
    "too few images": (
        "--data.split disjoint --loft.partition none --loft.workers 2000",
        "loft.workers=2000: 1437 images are too few for data.split=disjoint",
    ),
}
# Rules that no command line can break here: tests of their own break them.
TESTED_ELSEWHERE = ("GPipe runs in one process", "belongs to the filter groups", "JAX finds no device to run on")
TESTED_ELSEWHERE += ("cannot be spread evenly", "cannot be taken evenly", "GPipe trains on data that are kept")
ALL_RULES = {**RULES, **LATER_RULES}


@pytest.fixture(scope="module")
def said_to_rules(place):
    return {
        row: refusal("train", *options.split(), "--workdir", f"later {row}", sees_devices=row in LATER_RULES)
        for row, (options, _) in ALL_RULES.items()
    }


@pytest.mark.parametrize("row", ALL_RULES)
def test_settings_that_do_not_go_together_are_refused(row, said_to_rules):
    assert said_to_rules[row].removeprefix("command line: ").startswith(ALL_RULES[row][1])
    assert "\n" not in said_to_rules[row]


@pytest.mark.parametrize(
    "file", ["config.py", "cuts.py", "sub_cnn.py", "mesh.py", "exchange.py", "experiment.py", "data/__init__.py"]
)
def test_every_rule_has_a_row(file, said_to_rules):
    for line, message in rules_of(PACKAGE / file):
        if not any(text in message.pattern.replace("\\", "") for text in TESTED_ELSEWHERE):
            assert any(map(message.search, said_to_rules.values())), f"{file}:{line}: {message.pattern} has no row"


# --- every command ---------------------------------------------------------------------------------------------------

# Command, arguments, and how the message begins or what it holds.
COMMANDS = [
    ("train", "--config", "argument --config: expected one argument"),
    ("train", "--workdir", "argument --workdir: expected one argument"),
    ("train", "--config nowhere.yaml", "--config nowhere.yaml: no such file"),
    ("train", "--config empty", "--config empty: cannot be read"),
    ("train", "--config file", "--config file: must be a mapping"),
    ("train", "--config latin.yaml", "--config latin.yaml: cannot be read"),
    ("train", "--config file/c.yaml", "--config file/c.yaml: cannot be read"),
    ("train", ["--config", ""], "--config '': is empty"),
    ("train", ["--config", "a\0b"], r"--config 'a\x00b': has a control character"),
    ("train", ["--config", LONG], "is too long"),
    ("train", ["--workdir", ""], "--workdir '': is empty"),
    ("train", ["--workdir", "a\0b"], r"--workdir 'a\x00b': has a control character"),
    ("train", ["--workdir", "a\nb"], r"--workdir 'a\nb': has a control character"),
    ("train", ["--workdir", "\udcff"], r"--workdir '\udcff': has a control character, or bytes that are not UTF-8"),
    ("train", ["--workdir", LONG], "is too long"),
    ("train", "--workdir file", "--workdir file: cannot be written"),
    ("train", "--workdir file/x", "--workdir file/x: cannot be written"),
    ("train", "--workdir /proc/x", "--workdir /proc/x: cannot be written"),
    ("train", "--workdir foreign", "--workdir foreign: is not empty and holds no run"),
    ("train", "--workdir run --seed 3", "--workdir run: holds a run with another config (seed: 0 there, 3 now)"),
    ("train", "--workdri x", "unknown option --workdri; did you mean --workdir?"),
    ("train", "run", "argument 'run' is not expected here"),
    ("train", "--dry_run=yes", "argument --dry_run: ignored explicit argument 'yes'"),
    ("train", ["--a\nb"], r"unknown option '--a\nb'"),
    *(
        row
        for command in ("tickets", "retrain")
        for row in [
            (command, "", "the following arguments are required: RUN"),
            (command, "nowhere", "nowhere: holds no config.yaml"),
            (command, "empty", "empty: holds no config.yaml"),
            (command, "file", "file: holds no config.yaml"),
            (command, "run/config.yaml", "run/config.yaml: holds no config.yaml"),
            (command, "unfinished", "unfinished: holds no snapshots; train it first"),
            (command, "headless", "that of round 0, the initialisation, is missing"),
            (command, "damaged", "damaged/config.yaml: unknown key sede; did you mean seed?"),
            (command, "directories", "directories/config.yaml: cannot be read"),
            (command, [""], "run directory '': is empty"),
            (command, ["a\0b"], r"run directory 'a\x00b': has a control character"),
            (command, [LONG], "is too long"),
            (command, "run run", "argument 'run' is not expected here"),
            (command, "run --confi c.yaml", "unknown option --confi"),
            (command, "run --data.batch_size 0", "data.batch_size"),
            (command, "run --loft.wrokers 2", "unknown option --loft.wrokers; did you mean --loft.workers?"),
            (command, "run --scope all", "argument --scope: invalid choice: 'all'"),
            (command, "run --norm l3", "argument --norm: invalid choice: 'l3'"),
        ]
    ),
    ("tickets", "run --loft.workers 2", "--loft.workers 2: the run was made with 4"),
    ("tickets", "run --rounds 3", "--rounds 3: no such snapshot; there are 0, 4"),
    ("tickets", "run --rounds", "argument --rounds: expected at least one argument"),
    ("tickets", "run --reference", "argument --reference: expected one argument"),
    ("tickets", "run --force=1", "argument --force: ignored explicit argument '1'"),
    ("retrain", "run", "give either --ticket NAME"),
    ("retrain", f"run --ticket {TICKET} --every 2", "give either --ticket NAME"),
    ("retrain", "run --every 2", "--every K and --ratio R go together"),
    ("retrain", f"run --ticket {TICKET} --ratio 0.5", "--every K and --ratio R go together"),
    ("retrain", f"run --ticket {TICKET} --norm l1", "--scope and --norm go with --every"),
    ("retrain", "run --every 2 --ratio 0.5 --mode init", "--mode init: is the same network for every snapshot"),
    ("retrain", f"run --ticket {TICKET} --mode rewnd", "argument --mode: invalid choice: 'rewnd'"),
    ("retrain", f"run --ticket {TICKET} --rewind_to 3", "--rewind_to 3: no such snapshot; there are 0, 4"),
    ("retrain", f"run --ticket {TICKET} --rewind_to 4 --mode finetune", "--rewind_to 4: finetune does not rewind"),
    ("retrain", f"run --ticket {TICKET} --loft.workers 2", "--loft.workers: cannot be changed for a retraining"),
    ("retrain", "run --ticket", "argument --ticket: expected at least one argument"),
    *(
        ("retrain", ["run", "--ticket", name], f"{shown}: no such ticket in run/tickets; there are {TICKET}")
        for name, shown in {
            "r9-group-l2-0.5": "--ticket r9-group-l2-0.5",
            "": "--ticket ''",
            "/": "--ticket ''",
            "..": "--ticket ..",
            f"../tickets/{TICKET}": f"--ticket ../tickets/{TICKET}",
            f"/{TICKET}": f"--ticket /{TICKET}",
            "a\0b": r"--ticket 'a\x00b'",
            "a\nb": r"--ticket 'a\nb'",
            LONG: "x'",
        }.items()
    ),
    ("retrain", "renamed --ticket r0-group-l2-0.5", f"--ticket r0-group-l2-0.5: holds {TICKET}"),
    ("retrain", "nested --ticket r4-group-l2-0.5", "ticket.json: holds no ticket (maximum recursion depth"),
    ("cost", "", "give --config FILE for what a setting costs, or --paper"),
    ("cost", "--paper --config c.yaml", "--paper has settings of its own"),
    ("cost", ["--paper", "--config", ""], "--paper has settings of its own"),
    ("cost", "--paper --seed 1", "--paper has settings of its own"),
    ("cost", "--config nowhere.yaml", "--config nowhere.yaml: no such file"),
    ("cost", ["--config", ""], "--config '': is empty"),
    ("cost", "--config c.yaml --seed two", "c.yaml: seed='two': must be a valid integer"),
    ("cost", "--config c.yaml --format json", "argument --format: invalid choice: 'json'"),
    ("cost", "--config c.yaml --worker 2", "unknown option --worker; did you mean --workers?"),
    ("cost", "--config c.yaml run", "argument 'run' is not expected here"),
    ("bench", "--pair 3", "unknown option --pair; did you mean --pairs?"),
    ("bench", "3", "argument '3' is not expected here"),
    ("bench", "--json", "argument --json: expected one argument"),
    ("bench", ["--json", ""], "--json '': is empty"),
    ("bench", ["--json", "a\0b"], r"--json 'a\x00b': has a control character"),
    ("bench", "--json empty", "--json empty: is a directory"),
    ("bench", "--json nowhere/x.json", "--json nowhere/x.json: its directory does not exist"),
]
WHOLE_NUMBERS = {
    ("tickets", "run --rounds"): 0,
    ("retrain", f"run --ticket {TICKET} --rewind_to"): 0,
    ("retrain", f"run --ticket {TICKET} --seeds"): 0,
    ("retrain", "run --ratio 0.5 --every"): 1,
    ("cost", "--config c.yaml --workers"): 1,
    ("bench", "--pairs"): 1,
}
RATIOS = [("tickets", "run --ratios"), ("tickets", "run --ratios 0.5"), ("retrain", "run --every 2 --ratio")]
# Commands that read no settings but their own.
OWN_SETTINGS = {"bench"}


@pytest.fixture(scope="module")
def runs(place):
    """Runs with which something is wrong."""
    for name in ("unfinished", "headless", "damaged", "renamed", "nested"):
        untrained(name)
    for path in ("headless/snapshots/4", "directories/config.yaml", "directories/snapshots", "foreign/x"):
        (place / path).mkdir(parents=True)
    (place / "damaged/config.yaml").write_text("sede: 1\n")
    for name, ticket in {"renamed": "r0-group-l2-0.5", "nested": TICKET}.items():
        (place / name / "snapshots/0").mkdir(parents=True)
        (place / name / "tickets" / ticket).mkdir(parents=True)
        text = (place / "run/tickets" / TICKET / "ticket.json").read_text() if name == "renamed" else "[" * 100_000
        (place / name / "tickets" / ticket / "ticket.json").write_text(text)


@pytest.mark.compat
@pytest.mark.parametrize(("command", "arguments", "message"), COMMANDS)
def test_a_command_refuses_what_it_cannot_do(command, arguments, message, runs):
    arguments = arguments.split() if isinstance(arguments, str) else arguments
    said = refusal(command, *arguments)
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(("command", "arguments"), WHOLE_NUMBERS)
def test_a_commands_own_whole_number_is_checked(command, arguments, place):
    least, option = WHOLE_NUMBERS[command, arguments], arguments.split()[-1]
    for value in (
        "",
        " ",
        "two",
        "2.5",
        "nan",
        "true",
        "1e1",
        "4_0",
        " 4",
        "\u0664",
        "²",
        str(least - 1),
        "9" * 30,
        "9" * 5000,
    ):
        said = refusal(command, *arguments.split(), value)
        assert said.startswith(f"argument {option}: ")
        assert f": must be a whole number of at least {least}" in said
        assert "\n" not in said


@pytest.mark.parametrize(("command", "arguments"), RATIOS)
def test_a_ratio_is_checked(command, arguments, place):
    for value in ("", " ", "half", "-0.1", "1", "1.5", "nan", "inf", "1e400", "\u0660.\u0665", "0,5", "0x1", "a\nb"):
        said = refusal(command, *arguments.split(), value)
        assert said.startswith("argument --ratio")
        assert ": must be in [0, 1)" in said
        assert "\n" not in said


def test_every_command_is_in_the_matrix():
    commands = {path.stem for path in PACKAGE.glob("*.py") if "__main__" in path.read_text()}
    assert commands == {command for command, _, _ in COMMANDS}


@pytest.mark.parametrize("command", sorted({command for command, _, _ in COMMANDS} - OWN_SETTINGS))
def test_every_command_reads_the_settings_alike(command, place):
    required = {"tickets": ["run"], "retrain": ["run", "--ticket", TICKET], "cost": ["--config", "c.yaml"]}
    arguments = required.get(command, [])
    assert "train.eval_every='two': must be a valid integer" in refusal(
        command, *arguments, "--train.eval_every", "two"
    )
    with pytest.raises(AcceptedError):
        outcome(command, *arguments, "--train.eval_every", "2")


@pytest.mark.parametrize("content", ["5", "[]", "{", "\xff", None])
def test_a_summary_that_is_none_is_not_taken_for_a_finished_run(content, place):
    directory = untrained(f"summary {content!a}"[:20])
    summary = directory.path / "summary.json"
    summary.mkdir() if content is None else summary.write_text(content, encoding="latin-1")
    with pytest.raises(AcceptedError):
        outcome("train", "--workdir", str(directory.path))


# --- the whole process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train", "--loft.workers two"),
        ("train", "--config nowhere.yaml"),
        ("tickets", "nowhere"),
        ("cost", "--config c.yaml --workers 0"),
        ("bench", "--pairs 0"),
    ],
)
def test_a_process_refuses_within_a_second_without_jax(command, arguments, place):
    code = (
        "import atexit, runpy, sys, time; start = time.process_time()\n"
        "atexit.register(lambda: print('jax' in sys.modules, time.process_time() - start))\n"
        f"sys.argv = [{command!r}, *{arguments.split()!r}]\n"
        f"runpy.run_module('loft_jax.{command}', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    loaded, seconds = done.stdout.split()
    # Of the processor, for other tests run beside this one.
    assert (loaded, float(seconds) < 1.5) == ("False", True), done.stdout


# --- at random -------------------------------------------------------------------------------------------------------


def test_whatever_is_typed_is_accepted_or_refused_with_one_message(place):
    rng = random.Random(0)
    for _ in range(FUZZED):
        command, arguments, text = mutated(rng)
        (place / "fuzzed.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            said = refusal(command, *arguments)
        except AcceptedError:
            continue
        except BaseException as error:
            raise AssertionError(f"{command} {arguments} with {text!r}") from error
        assert len(said) < 20_000


FUZZED = 150
PIECES = [
    "",
    " ",
    "0",
    "-1",
    "1",
    "2",
    "null",
    "true",
    "~",
    "nan",
    ".inf",
    "1e9",
    "two",
    "[1]",
    "{a: 1}",
    "[",
    "'",
    '"',
    "#",
]
PIECES += [
    "&a",
    "*a",
    "!!int",
    "---",
    "<<",
    "? ",
    "a: b: c",
    "\n",
    "\t",
    "\0",
    "\x85",
    "\ud800",
    "\u0663",
    "é",
    "x" * 5000,
    "9" * 40,
]
PIECES += [
    "--",
    "-",
    "=",
    "%",
    "${HOME}",
    "../",
    "/",
    "balanced",
    "stage1/block1",
    "auto",
    "digits",
    "cifar10",
    "2001-01-01",
]


def mutated(rng: random.Random) -> tuple[str, list[str], str]:
    """A command, its arguments and a config file, of which a few characters, words or values have been replaced."""

    def value(key: str) -> str:
        default = flatten(Config())[key]
        valid = "null" if default is None else str(default)
        return valid if rng.random() < 0.7 else rng.choice(PIECES)

    keys = rng.sample(list(FIELDS), 3)
    settings = [f"{section}: {{{leaf}: {value(key)}}}" for key in keys for section, _, leaf in [key.rpartition(".")]]
    text = yaml.safe_dump(Config().model_dump()) if rng.random() < 0.5 else "\n".join(settings)
    for _ in range(rng.choice([0, 0, 1, 2])):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(PIECES) + text[at + rng.randrange(4) :]
    command, given = rng.choice(
        [
            ("train", ["--config", "fuzzed.yaml", "--dry_run"]),
            ("tickets", ["run", "--ratios", "0.5", "--rounds", "0", "--scope", "group"]),
            ("retrain", ["run", "--ticket", TICKET, "--mode", "rewind", "--seeds", "1"]),
            ("retrain", ["run", "--every", "2", "--ratio", "0.5", "--norm", "l1"]),
            ("cost", ["--config", "fuzzed.yaml", "--workers", "2", "--no_compile"]),
            ("bench", ["--pairs", "3", "--json", "bench.json"]),
        ]
    )
    arguments = [*given, *(word for key in keys[: rng.randrange(3)] for word in (f"--{key}", value(key)))]
    for _ in range(rng.choice([0, 0, 1, 2])):
        at, word = rng.randrange(len(arguments)), rng.choice(PIECES)
        arguments[at : at + rng.randrange(2)] = [arguments[at] + word if rng.random() < 0.5 else word]
    return command, arguments, text
