"""The bad-input matrix of commands: each with what it cannot do, in this process and as one of its own."""

import subprocess
import sys

import pytest
from helpers import PACKAGE
from helpers.refused import LONG, TICKET, AcceptedError, outcome, refusal, untrained

# Command, arguments, and how the message begins or what it holds.
HELD = "--data.validation 0.1"
COMMANDS = [
    ("distances", "nowhere.npz --out out", "nowhere.npz: "),
    ("groups", "--figure groups.png", "--figure groups.png: must end in .svg; try groups.svg"),
    # Before the processes meet.
    ("train", ["--workdir", "", "--distributed", "auto"], "--workdir '': "),
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
            (command, "run --score_batches x", "argument --score_batches: x: must be"),
            (command, "run --norm taylor --score_batches 0", "argument --score_batches: 0: must be"),
        ]
    ),
    ("tickets", "run --loft.workers 2", "--loft.workers 2: the run was made with 4"),
    ("tickets", "run --score_batches 4", "--score_batches 4: goes with --norm taylor; leave it out"),
    ("tickets", "run --norm l1 --score_batches 4", "--score_batches 4: goes with --norm taylor; leave it out"),
    ("retrain", "run --every 2 --ratio 0.5 --score_batches 4", "--score_batches 4: goes with --norm taylor"),
    ("tickets", "run --rounds 3", "--rounds 3: no such snapshot; try 4; there are 0, 4"),
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
    ("retrain", f"run --ticket {TICKET} --rewind_to 3", "--rewind_to 3: no such snapshot; try 4; there are 0, 4"),
    ("retrain", f"run --ticket {TICKET} --rewind_to 4 --mode finetune", "--rewind_to 4: finetune does not rewind"),
    (
        "retrain",
        f"run --ticket {TICKET} --rewind_to 6 --mode lr_rewind --train.rounds 6",
        "--rewind_to 6: lr_rewind trains the rounds that",
    ),
    (
        "retrain",
        f"run --ticket {TICKET} --rewind_to 1 --mode lr_rewind --train.rounds 6 --optimizer.name adam",
        "--mode lr_rewind: begins in the middle of the run with moments that are zero",
    ),
    (
        "retrain",
        f"run --ticket {TICKET} --epochs 2 --train.rounds 9",
        "--epochs 2: is another way to give --train.rounds",
    ),
    ("retrain", f"run --ticket {TICKET} --groups paper", "--scope and --norm go with --every"),
    ("tickets", "run --groups papers", "argument --groups: invalid choice: 'papers'"),
    ("retrain", f"run --ticket {TICKET} --loft.workers 2", "--loft.workers: cannot be changed for a retraining"),
    ("retrain", "run --ticket", "argument --ticket: expected at least one argument"),
    *(
        ("retrain", ["run", "--ticket", name], f"{shown}: no such ticket in run/tickets; ")
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
    ("retrain", "renamed --ticket r0-group-l2-0.5", f"--ticket r0-group-l2-0.5: holds the ticket {TICKET}"),
    ("retrain", "nested --ticket r4-group-l2-0.5", "ticket.json: holds no ticket (is nested too deeply)"),
    ("cost", "", "give --config FILE for what a setting costs, or --paper"),
    ("cost", "--paper --config c.yaml", "--paper has settings of its own"),
    ("cost", ["--paper", "--config", ""], "--paper has settings of its own"),
    ("cost", "--paper --seed 1", "--paper has settings of its own"),
    ("cost", "--config nowhere.yaml", "--config nowhere.yaml: no such file"),
    ("cost", ["--config", ""], "--config '': is empty"),
    ("cost", "--config c.yaml --seed two", "command line: seed='two': must be a valid integer"),
    ("cost", "--config c.yaml --format json", "argument --format: invalid choice: 'json'"),
    ("cost", "--config c.yaml --worker 2", "unknown option --worker; did you mean --workers?"),
    ("cost", "--config c.yaml run", "argument 'run' is not expected here"),
    ("plan", "", "give --config FILE for what to plan"),
    ("plan", "--config c.yaml", "give --topology T for the hardware to plan for"),
    ("plan", "--config nowhere.yaml --topology cpu:4", "--config nowhere.yaml: no such file"),
    ("plan", "--config c.yaml --topology v5x:4x4", "--topology v5x:4x4: 'v5x' is none of"),
    ("plan", "--config c.yaml --topology cpu:0", "--topology cpu:0: must be cpu:N"),
    ("plan", ["--config", "c.yaml", "--topology", "cpu:\u0664"], "must be cpu:N"),
    ("plan", ["--config", "c.yaml", "--topology", "v4:2x2x\u0662"], "a slice of v4 has three sides"),
    ("plan", ["--config", "c.yaml", "--topology", "a\nb"], r"--topology 'a\nb': "),
    ("plan", ["--config", "c.yaml", "--topology", ""], "give --topology T"),
    ("plan", ["--config", "c.yaml", "--topology", LONG], "is none of v4, v5e"),
    ("plan", "--config c.yaml --topology cpu:4 --memory_gb many", "argument --memory_gb: invalid float value: 'many'"),
    ("plan", "--config c.yaml --topology cpu:4 --memory_gb 0", "--memory_gb 0.0: must be a positive number"),
    ("plan", "--config c.yaml --topology cpu:4 --link_gbps nan", "--link_gbps nan: must be a positive number"),
    ("plan", "--config c.yaml --topology cpu:4 --format json", "argument --format: invalid choice: 'json'"),
    ("plan", "--config c.yaml --topolgy cpu:4", "unknown option --topolgy; did you mean --topology?"),
    ("plan", "--config c.yaml --topology cpu:4 --seed two", "command line: seed='two': must be a valid integer"),
    ("plan", "run", "argument 'run' is not expected here"),
    ("report", "", "the following arguments are required: RUN, --out"),
    ("report", "run", "the following arguments are required: --out"),
    ("report", "--out out", "the following arguments are required: RUN"),
    ("report", "run --out", "argument --out: expected one argument"),
    ("report", "nowhere --out out", "nowhere: holds no config.yaml"),
    ("report", "run empty --out out", "empty: holds no config.yaml"),
    ("report", "run file --out out", "file: holds no config.yaml"),
    ("report", "damaged --out out", "damaged/config.yaml: unknown key sede; did you mean seed?"),
    ("report", "directories --out out", "directories/config.yaml: cannot be read"),
    ("report", "run run --out out", "run: is the same run as run; name it once"),
    ("report", "run run/../run/ --out out", "is the same run as run; name it once"),
    ("report", ["run", "", "--out", "out"], "run directory '': is empty"),
    ("report", ["a\0b", "--out", "out"], r"run directory 'a\x00b': has a control character"),
    ("report", [LONG, "--out", "out"], "is too long"),
    ("report", ["run", "--out", ""], "--out '': is empty"),
    ("report", ["run", "--out", "a\nb"], r"--out 'a\nb': has a control character"),
    ("report", ["run", "--out", LONG], "is too long"),
    ("report", "run --out file", "--out file: cannot be written"),
    ("report", "run --out file/x", "--out file/x: cannot be written"),
    ("report", "run --out /proc/x", "--out /proc/x: cannot be written"),
    ("report", "run --out pictures", "--out pictures: holds figures but no report.html; use another directory"),
    ("report", "run --out out --loft.workers 2", "--loft.workers 2: the run was made with 4"),
    ("report", "run --out out --data.batch_size 0", "data.batch_size"),
    ("report", "run --out out --loft.wrokers 2", "unknown option --loft.wrokers; did you mean --loft.workers?"),
    ("report", "run --ou out", "the following arguments are required: --out"),
    ("lottery", "", "data.validation=0.0: the step of least validation loss is sought, and no images are held out for"),
    ("lottery", "--config nowhere.yaml", "--config nowhere.yaml: no such file"),
    ("lottery", f"{HELD} --workdir file", "--workdir file: cannot be written"),
    ("lottery", f"{HELD} --workdir /proc/x", "--workdir /proc/x: cannot be written"),
    ("lottery", f"{HELD} --workdir foreign", "--workdir foreign: is not empty and holds no run; use another"),
    ("lottery", f"{HELD} --workdir run", "--workdir run: holds a run of another command; use another directory"),
    ("lottery", [*HELD.split(), "--workdir", ""], "--workdir '': is empty"),
    ("lottery", [*HELD.split(), "--workdir", "a\0b"], r"--workdir 'a\x00b': has a control character"),
    ("lottery", [*HELD.split(), "--workdir", LONG], "is too long"),
    ("lottery", f"{HELD} --workdri x", "unknown option --workdri; did you mean --workdir?"),
    ("lottery", f"{HELD} --lottery.level 2", "unknown option --lottery.level; did you mean --lottery.levels?"),
    ("lottery", f"{HELD} --seeds", "argument --seeds: expected at least one argument"),
    ("lottery", f"{HELD} run", "argument 'run' is not expected here"),
    ("train", "--lottery.levels 2", "unknown option --lottery.levels"),
    ("theory", "--config nowhere.yaml", "--config nowhere.yaml: no such file"),
    ("theory", ["--config", ""], "--config '': is empty"),
    ("theory", "--out", "argument --out: expected one argument"),
    ("theory", ["--out", ""], "--out '': is empty"),
    ("theory", ["--out", "a\0b"], r"--out 'a\x00b': has a control character"),
    ("theory", ["--out", LONG], "is too long"),
    ("theory", "--out file", "--out file: cannot be written"),
    ("theory", "--out file/x", "--out file/x: cannot be written"),
    ("theory", "--out /proc/x", "--out /proc/x: cannot be written"),
    ("theory", "--out run", "--out run: is not empty and holds no results.csv of an experiment; use another"),
    (
        "theory",
        "--theory.scale literl",
        "theory.scale=literl: must be one of unbiased, differentiated, literal; did you",
    ),
    ("theory", "--theory.work 4", "unknown option --theory.work; did you mean --theory.workers?"),
    ("theory", "--theory.xi 0", "theory.xi='0': must be greater than 0"),
    ("theory", "--loft.workers 4", "unknown option --loft.workers; did you mean --theory.workers?"),
    ("theory", "--theory.sweep_filters 16777216 --theory.rounds 100000", "GB of memory, and must fit in the"),
    ("theory", "--theory.filters 16777216 --theory.rounds 100000", "theory.filters=16777216: 16777216 filters with"),
    ("theory", "--theory.data gaussian --theory.pixels 64 --theory.samples 1797", "this machine; lower theory.samples"),
    ("theory", "run", "argument 'run' is not expected here"),
    ("bench", "--pair 3", "unknown option --pair; did you mean --pairs?"),
    ("bench", "3", "argument '3' is not expected here"),
    ("bench", "--json", "argument --json: expected one argument"),
    ("bench", ["--json", ""], "--json '': is empty"),
    ("bench", ["--json", "a\0b"], r"--json 'a\x00b': has a control character"),
    ("bench", "--json empty", "--json empty: is a directory"),
    ("bench", "--json nowhere/x.json", "--json nowhere/x.json: its directory does not exist"),
    ("study", "", "give --config FILE for the study, or the name of a packaged one, as in --config rehearsal"),
    ("study", "--config nowhere.yaml", "--config nowhere.yaml: no such file"),
    ("study", "--config empty", "--config empty: cannot be read"),
    ("study", "--config file", "--config file: must be a mapping"),
    ("study", ["--config", ""], "--config '': is empty"),
    ("study", "--config c.yaml", "c.yaml: steps: are missing; name what is done"),
    ("study", "--config digits", "--config digits: neither a file nor a packaged config; packaged are cifar10_one_gpu"),
    ("study", "--config rehearsal", "rehearsal: steps.card.paths: tests/gpu: no such file or folder; run the study in"),
    ("study", "--config study.yaml --wrkdir x", "unknown option --wrkdir; did you mean --workdir?"),
    ("study", "--config study.yaml --model.width 0", "command line: model.width='0': must be greater than"),
    ("study", "--config study.yaml --loft.wrokers 2", "unknown option --loft.wrokers; did you mean --loft.workers?"),
    ("study", "--config study.yaml --budget 30", "--budget 30: is too small for the first job, a-seed0-all, which"),
    ("study", "--config study.yaml --budget", "argument --budget: expected one argument"),
    ("study", "--config study.yaml --task 3/3", "argument --task: 3/3: must be K/N, with K from 0 to N - 1; try 0/4"),
    ("study", ["--config", "study.yaml", "--task", "\u0661/4"], "must be K/N, with K from 0 to N - 1"),
    ("study", "--config study.yaml --job a-seed1-all", "--job a-seed1-all: no such job; did you mean a-seed0-all?"),
    ("study", "--config study.yaml --list=all", "argument --list: ignored explicit argument 'all'"),
    ("study", "--config study.yaml --workdir file", "--workdir file: cannot be written"),
    ("study", "--config study.yaml --workdir /proc/x", "--workdir /proc/x: cannot be written"),
    ("study", "--config study.yaml --workdir run", "--workdir run: is not empty and holds no study; use another"),
    ("study", ["--config", "study.yaml", "--workdir", ""], "--workdir '': is empty"),
    ("study", ["--config", "study.yaml", "--workdir", "a\nb"], r"--workdir 'a\nb': has a control character"),
    ("study", ["--config", "study.yaml", "--workdir", LONG], "is too long"),
]
WHOLE_NUMBERS = {
    ("tickets", "run --rounds"): 0,
    ("retrain", f"run --ticket {TICKET} --rewind_to"): 0,
    ("retrain", f"run --ticket {TICKET} --seeds"): 0,
    ("retrain", f"run --ticket {TICKET} --epochs"): 1,
    ("retrain", "run --ratio 0.5 --every"): 1,
    ("lottery", "--data.validation 0.1 --seeds"): 0,
    ("cost", "--config c.yaml --workers"): 1,
    ("bench", "--pairs"): 1,
    ("study", "--config study.yaml --budget"): 1,
}
RATIOS = [("tickets", "run --ratios"), ("tickets", "run --ratios 0.5"), ("retrain", "run --every 2 --ratio")]
# Commands that read no settings but their own.
OWN_SETTINGS = {"bench", "distances", "study", "theory"}


@pytest.fixture(scope="module")
def runs(place):
    """Runs with which something is wrong."""
    for name in ("unfinished", "headless", "damaged", "renamed", "nested"):
        untrained(name)
    for path in (
        "headless/snapshots/4",
        "directories/config.yaml",
        "directories/snapshots",
        "foreign/x",
        "pictures/figures",
    ):
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
    commands = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert commands == {command for command, _, _ in COMMANDS}


@pytest.mark.parametrize("command", sorted({command for command, _, _ in COMMANDS} - OWN_SETTINGS))
def test_every_command_reads_the_settings_alike(command, place):
    required = {"tickets": ["run"], "retrain": ["run", "--ticket", TICKET], "cost": ["--config", "c.yaml"]}
    required |= {"plan": ["--config", "c.yaml", "--topology", "cpu:4"], "report": ["run", "--out", "out"]}
    required["lottery"] = HELD.split()
    arguments = required.get(command, [])
    assert "train.eval_every='two': must be a valid integer" in refusal(
        command, *arguments, "--train.eval_every", "two"
    )
    with pytest.raises(AcceptedError):
        outcome(command, *arguments, "--train.eval_every", "2")


@pytest.mark.parametrize("content", ["5", "[]", "{", "\xff", None, '{"round": 6}'])
def test_a_summary_that_is_none_is_not_taken_for_a_finished_run(content, place):
    directory = untrained(f"summary {content!a}"[:20])
    summary = directory.path / "summary.json"
    summary.mkdir() if content is None else summary.write_text(content, encoding="latin-1")
    with pytest.raises(AcceptedError):
        outcome("train", "--workdir", str(directory.path))


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train", "--loft.workers two"),
        ("train", "--config nowhere.yaml"),
        ("tickets", "nowhere"),
        ("cost", "--config c.yaml --workers 0"),
        ("plan", "--config c.yaml --topology cpu:0"),
        ("report", "nowhere --out out"),
        ("lottery", "--data.validation 0.1 --lottery.rates *=2"),
        ("theory", "--theory.sweep_filters 16777216 --theory.rounds 100000"),
        ("bench", "--pairs 0"),
        ("study", "--config study.yaml --budget 1"),
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
