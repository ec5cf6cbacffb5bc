"""Where output goes: closed, full, in ASCII, narrow, silent. The work that was done is never lost with it."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loft_jax import console as module
from loft_jax.console import Output, console, guarded_output, make_table, now_doing, shows_bars

# Prints what the commands print, after work that leaves a file.
PROGRAM = """
import sys
from pathlib import Path
from loft_jax.config import run_command
from loft_jax.console import console, make_table

def main():
    print("training", flush=True)
    Path(sys.argv[1]).touch()
    table = make_table("mean ± deviation", "ticket", "accuracy")
    table.add_row("r2-group-l2-0.5", "12.64% ± 4.12")
    console().print(table)
    print("warning: 1 ± 2 … ≥ 3 é", file=sys.stderr)

run_command(main)
"""


def run(tmp_path, redirection, **environment):
    """What is left of the program, as a shell starts it: exit code, stdout, stderr."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", f'"$0" "$@" {redirection}', sys.executable, script, tmp_path / "done"],
        capture_output=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(sys.path), **environment},
    )
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def test_output_to_nowhere_is_no_failure(tmp_path):
    code, _, said = run(tmp_path, ">&-")
    assert (code, said) == (0, "warning: 1 ± 2 … ≥ 3 é\n")
    assert (tmp_path / "done").exists()
    assert run(tmp_path, "2>&-")[0] == 0
    assert run(tmp_path, ">&- 2>&- <&-") == (0, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_said_once_and_after_the_work(tmp_path):
    code, _, said = run(tmp_path, "> /dev/full")
    assert code == 1
    assert (tmp_path / "done").exists(), "the work is done"
    assert said.splitlines()[-1] == (
        "error: what was printed is lost, because stdout cannot be written (No space left on device)"
    )
    assert run(tmp_path, "2> /dev/full")[0] == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stream_that_cannot_write_a_letter_spells_it(tmp_path, encoding):
    code, said, warned = run(tmp_path, "", PYTHONIOENCODING=encoding)
    assert code == 0
    if encoding == "ascii":
        assert "12.64% +/- 4.12" in said
        # Python's own stderr escapes what it cannot write.
        assert warned.isascii()


def test_other_commands_output_is_spelt_as_well():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    output = Output(stream)
    output.writelines(["1 ± 2\n", "≥ 3 … ", "é"])
    output.flush()
    assert stream.buffer.getvalue() == b"1 +/- 2\n>= 3 ... \\xe9"
    assert output.lost is None


def test_a_reader_that_has_ended_still_ends_the_command(tmp_path):
    code, said, _ = run(tmp_path, "| true; exit ${PIPESTATUS[0]}")
    assert (code in (0, 1), said) == (True, "")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "_SILENT_AT_START", 0.05)
    monkeypatch.setattr(module, "_SILENT", 0.15)
    monkeypatch.setattr(module, "_LOOK", 0.01)


def test_a_silent_command_gives_signs_of_life_and_says_what_it_does(impatient, capsys):
    now_doing("compiling the first round")
    with guarded_output():
        time.sleep(0.5)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "working   0 s, compiling the first round"
    assert 1 <= len(others) <= 4
    now_doing("")
    time.sleep(0.3)
    assert capsys.readouterr().out == "", "nothing after the end"


def test_a_command_that_speaks_gives_none_and_data_for_programs_stay_clean(impatient, capsys):
    with guarded_output():
        for i in range(20):
            print(i)
            time.sleep(0.02)
    assert capsys.readouterr().out.split() == list(map(str, range(20)))
    with guarded_output(signs="stderr"):
        time.sleep(0.2)
    said = capsys.readouterr()
    assert (said.out, said.err[:9]) == ("", "working  ")


def test_inside_another_guard_nothing_changes():
    before = sys.stdout
    with guarded_output() as outer, guarded_output() as inner:
        assert inner is outer is sys.stdout
    assert sys.stdout is before


def test_five_seconds_at_the_start_and_ten_afterwards_are_kept():
    assert module._SILENT_AT_START + 2 * module._LOOK + 1.5 < 5, "Python starts first"
    assert max(module._SILENT, module.SECONDS_BETWEEN_LINES) + 2 * module._LOOK < 10


@pytest.mark.parametrize("columns", [30, 60, 80])
def test_in_a_narrow_table_two_names_stay_two_names(monkeypatch, capsys, columns):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    names = [f"r4096-global-whole_group-0.{share}-{'of' * 10}" for share in (5, 55)]
    table = make_table("a title that is longer than a line of the terminal has room for", "ticket", "accuracy", "left")
    for name in names:
        table.add_row(name, "99.17% ± 0.28", "123,456.7 MB")
    console().print(table)
    cells = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(row[1].strip() for row in cells) == "".join(names)
    assert "".join(row[2].replace(" ", "") for row in cells) == 2 * "99.17%±0.28"
    assert "".join(row[3].replace(" ", "") for row in cells) == 2 * "123,456.7MB"


@pytest.mark.parametrize(("terminal", "bars"), [("xterm", True), ("dumb", False), ("unknown", False), ("", True)])
def test_bars_are_for_terminals_that_can_draw_them(monkeypatch, terminal, bars):
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert shows_bars() == bars
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert not shows_bars()
