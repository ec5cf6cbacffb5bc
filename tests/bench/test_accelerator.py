"""The accelerator's table, rehearsed on the CPU: tiny networks, and a pretended chip."""

import json
import subprocess
import sys
from dataclasses import replace

import jax
import pytest

from loft_jax.bench.accelerator import (
    AcceleratorBench,
    Setting,
    in_order_of_worth,
    measure_in_time,
    print_accelerator_row,
    print_accelerator_table,
    repeat,
)
from loft_jax.devices import Chip
from loft_jax.models import create_model, training_flops

TINY = Setting("preresnet20", 4, "bfloat16", 4, workers=4)


def test_settings_are_in_order_of_worth():
    """What the card is made for comes first, and PyTorch's rows after ours of the same network."""
    settings = in_order_of_worth(("preresnet18", "preresnet34"), None, (512, 128), 4, torch=True)
    names = [str(setting) for setting in settings]
    assert len(set(names)) == len(names) == 2 * 2 * (2 * 2 + 2)
    assert names[:6] == [
        "full step, preresnet18, bfloat16, batch 512",
        "LoFT-4 step, preresnet18, bfloat16, batch 512",
        "full step, preresnet18, bfloat16, batch 128",
        "LoFT-4 step, preresnet18, bfloat16, batch 128",
        "PyTorch, full step, preresnet18, bfloat16, batch 512",
        "PyTorch, full step, preresnet18, bfloat16, batch 128",
    ]
    without = in_order_of_worth(("preresnet18", "preresnet34"), None, (512, 128), 4, torch=False)
    assert without == [setting for setting in settings if setting.library == "ours"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    time = [0.0]
    monkeypatch.setattr("loft_jax.bench.accelerator.time.perf_counter", lambda: time[0])
    return time


def test_a_row_that_would_not_end_in_time_is_left_out(clock, capsys):
    settings = [Setting(name, None, "float32", 8) for name in ("a", "b", "c", "d")]
    taken = dict(zip(settings, (20.0, 25.0, 5.0, 1.0), strict=True))

    def measure(setting):
        clock[0] += taken[setting]
        return {"what": setting.network}

    rows = list(measure_in_time(settings, measure, 60, 0.0))
    assert [row["what"] for row in rows] == ["a", "b"]
    assert [row["seconds"] for row in rows] == [20, 25]
    assert "left out, to end within 60 s: full step, c, float32, batch 8; full step, d" in capsys.readouterr().out
    clock[0] = 0.0
    assert len(list(measure_in_time(settings, measure, None, 0.0))) == 4


def test_the_time_before_the_first_row_counts(clock):
    clock[0] = 61.0
    assert list(measure_in_time([TINY], lambda setting: {}, 60, 0.0)) == []


def test_pytorch_that_sees_no_card_has_no_rows(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("loft_jax.bench.sides.run_alone", lambda *arguments: asked.append(arguments))
    bench = AcceleratorBench(1, examples=100)
    settings = [replace(TINY, library="PyTorch"), replace(TINY, library="PyTorch", batch=8)]
    assert list(measure_in_time(settings, bench.measure, None, 0.0)) == []
    assert capsys.readouterr().out == "PyTorch sees no card here, so it has no rows\n"
    assert len(asked) == 1


@pytest.mark.parametrize(("each", "times"), [(0.01, 5), (1.0, 2), (9.0, 2)])
def test_repetitions_end_when_they_have_taken_long_enough(each, times, clock):
    def run():
        clock[0] += each

    assert repeat(run, 5) == pytest.approx([each] * times)


@pytest.fixture(scope="module")
def measured():
    """A row of LoFT-4 on a pretended chip, and the programs that were compiled for it."""
    compiled = []

    def note(event, _, **facts):
        if event.endswith("backend_compile_duration"):
            compiled.append(facts["fun_name"])

    chip = Chip("pretended", tflops=1e-3, memory_gbps=1.0, kernel_us=3.0, tflops_float32=1e-4)
    jax.monitoring.register_event_duration_secs_listener(note)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loft_jax.bench.accelerator.LOCAL_STEPS", 2)
        patch.setattr("loft_jax.devices.find_chip", lambda kind: chip)
        # The first device alone, as a card is.
        patch.setattr("loft_jax.devices.mesh.jax.devices", lambda *_: jax.local_devices()[:1])
        row = AcceleratorBench(2, examples=100).measure(TINY)
    jax.monitoring.unregister_event_duration_listener(note)
    return row, compiled


def test_a_row_has_speed_share_of_peak_and_the_computed_time(measured):
    row, _ = measured
    split = {f"stage{stage}/block{block}": 2 ** (stage - 1) for stage in (2, 3) for block in (2, 3)}
    model = create_model("preresnet20", 10, width=4, dtype=jax.numpy.bfloat16)
    flops = training_flops(model.with_widths(split), (32, 32, 3)).computed
    assert row["what"] == "LoFT-4 step, preresnet20 of width 4, bfloat16, batch 4"
    assert row["least"] <= row["images_per_second"] <= row["largest"]
    assert row["ms_a_step"] == pytest.approx(1e3 * 4 / row["images_per_second"])
    assert row["share_of_peak"] == pytest.approx(row["images_per_second"] * flops / 1e9)
    assert 0 < row["share_outside_local_steps"] < 1
    # The least that the pretended chip's arithmetic, or its memory, lets a step take.
    assert row["predicted_ms_a_step"] >= 1e3 * row["bytes_a_step"] / 1e9 * 0.5
    assert row["predicted_bound"] in ("arithmetic", "memory", "launches")
    assert row["kernels_a_step"] > 50


def test_the_local_steps_are_compiled_once(measured):
    """Although they are compiled to be read, and called later."""
    _, compiled = measured
    programs = [name for name in compiled if name == "jit(<lambda>)"]
    assert len(programs) == 2, "a worker's loop, and its part before the first step"


def test_rows_and_table_show_what_there_is(measured, capsys):
    row, _ = measured
    theirs = {"what": "PyTorch, x", "images_per_second": 10.0, "least": 9.0, "largest": 11.0, "ours_over_pytorch": 1.5}
    print_accelerator_row(row)
    print_accelerator_row(theirs)
    lines = capsys.readouterr().out.splitlines()
    assert "images/s  LoFT-4 step, preresnet20 of width 4, bfloat16, batch 4" in lines[0]
    assert "of peak" in lines[0]
    assert "of a round outside local steps" in lines[0]
    assert lines[1].endswith("10 images/s  PyTorch, x, ours 1.50 of it")
    print_accelerator_table({"devices": "1 pretended"}, [row, theirs])
    table = capsys.readouterr().out
    assert all(heading in table for heading in ("images/s", "of peak", "computed", "outside", "/torch"))


@pytest.mark.full
def test_the_command_appends_each_row_and_writes_the_table(tmp_path):
    lines, table = tmp_path / "rows.jsonl", tmp_path / "table.json"
    tiny = ("--networks", "preresnet20", "--width", "4", "--batches", "4", "--pairs", "1", "--seconds", "600")
    done = subprocess.run(
        [sys.executable, "-m", "loft_jax.bench", "--table", "accelerator", *tiny, "--append", lines, "--json", table],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    ours = [row["what"] for row in rows if not row["what"].startswith("PyTorch")]
    assert ours == [
        f"{method} step, preresnet20 of width 4, {precision}, batch 4"
        for precision in ("bfloat16", "float32")
        for method in ("full", "LoFT-4")
    ]
    assert all(row["machine"]["jax"] == jax.__version__ for row in rows)
    assert [row["what"] for row in json.loads(table.read_text())["rows"]] == [row["what"] for row in rows]


@pytest.mark.full
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_twin_compiled_by_torch_does_its_steps(precision):
    torch = pytest.importorskip("torch", reason="the PyTorch twin needs the extra torch")
    from loft_jax.bench.torch_card import compiled_steps

    setting = Setting("preresnet20", 4, precision, 4)
    compiled, seconds = compiled_steps(setting.config, 64, 2, "cpu")
    assert compiled > max(seconds) > 0
    assert compiled_steps(setting.config, 64, 2, "cuda") is None or torch.cuda.is_available()
