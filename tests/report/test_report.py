"""The report command, and its page in a browser."""

import contextlib
import csv
import hashlib
import json
import shutil
import sys
import time

import pytest
from helpers.fake_runs import complete_run, fake_levels, fake_run, fake_search
from playwright.sync_api import sync_playwright

from loft_jax.errors import UserError
from loft_jax.report.__main__ import main
from loft_jax.storage.records import write_object

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "$\\frac$ 雪<script>alert('&\"|</title>--><img src=x onerror=alert(1)>"


@pytest.fixture
def report(monkeypatch, tmp_path):
    """Run the command, in this process; returns the report's directory."""

    def call(*runs, out=tmp_path / "report"):
        monkeypatch.setattr(sys, "argv", ["report", *(str(getattr(r, "path", r)) for r in runs), "--out", str(out)])
        main()
        return out

    return call


def digest(path):
    return {
        p.relative_to(path): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in path.rglob("*")
        if p.is_file()
    }


def test_a_report_has_every_figure_and_table_and_leaves_the_runs_alone(report, tmp_path, capsys):
    runs = [complete_run(tmp_path / "runs/a"), complete_run(tmp_path / "runs/b", loft={"workers": 2}, seed=3)]
    before = digest(tmp_path / "runs")
    out = report(*runs)
    assert digest(tmp_path / "runs") == before
    figures = {
        *("settling", "accuracy_by_bytes", "accuracy_by_images", "accuracy_by_seconds", "tickets_by_snapshot"),
        *("overlap", "time_of_a_round"),
        *(f"run{k}_{what}" for k in (1, 2) for what in ("controls", "distance", "to_ticket", "maps", "kept")),
    }
    assert {p.name for p in (out / "figures").iterdir()} == {f"{f}.{end}" for f in figures for end in ("png", "svg")}
    tables = {"runs", "results", "settling", "retrainings", "run1_cost", "run2_cost"}
    assert {p.name for p in (out / "tables").iterdir()} == {f"{t}.{end}" for t in tables for end in ("csv", "md")}
    with open(out / "tables/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["no-prune"], row["80% removed"], row["30% removed"]) for row in rows] == [
        (method, "95.50 ± 0.71", "94.00 ± 1.41", "") for method in ("LoFT-4", "LoFT-2")
    ]
    page = (out / "report.html").read_text()
    assert all(f'id="{name}"' in page for name in figures | tables)
    assert "missing" not in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"report.html", "figures", "tables"}


def test_a_report_replaces_an_earlier_one_and_nothing_else(report, tmp_path):
    out = report(fake_run(tmp_path / "a"))
    (out / "notes.txt").write_text("mine")
    bare = fake_run(tmp_path / "b")
    (bare.path / "metrics.jsonl").unlink()
    report(bare)
    assert not (out / "figures/settling.svg").exists()
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.full
def test_the_same_runs_give_the_same_files(report, tmp_path):
    run = fake_run(tmp_path / "a")
    fake_search(run, snapshots=3)
    one, two = ({p: d for p, (d, _) in digest(report(run)).items()} for _ in range(2))
    assert one == two


def test_runs_in_any_state_and_of_other_settings_make_a_report(report, tmp_path, capsys):
    begun = fake_run(tmp_path / "begun", finished=False)
    bare = fake_run(tmp_path / "bare", data={"name": "cifar10"})
    (bare.path / "metrics.jsonl").unlink()
    other = fake_run(tmp_path / "other", model={"width": 8})
    out = report(begun, bare, other)
    said = capsys.readouterr().out
    assert "missing   LoFT-4: the run has not finished: 6 of 12 rounds are done" in said
    assert "missing   LoFT-4: metrics.jsonl has no rows, although the run is finished" in said
    assert "These runs differ in model or data set and are shown separately" in (out / "report.html").read_text()
    assert (out / "figures/s3_settling.png").exists()
    assert not (out / "figures/s2_settling.png").exists()


def test_a_search_whose_run_has_lost_its_epochs_is_drawn_all_the_same(report, tmp_path):
    directory = complete_run(tmp_path / "run")
    (directory.path / "metrics.jsonl").unlink()
    text = directory.distances.read_text().splitlines()
    column = text[0].split(",").index("epoch")
    rows = [[cell if i != column else "" for i, cell in enumerate(line.split(","))] for line in text[1:]]
    directory.distances.write_text("\n".join([text[0], *map(",".join, rows)]) + "\n")
    options = json.loads(directory.search.read_text())
    write_object(directory.search, options | {"crc32": {}})
    out = report(directory)
    assert (out / "figures/run1_maps.png").exists()


def test_a_report_may_be_made_while_a_run_goes_on(report, tmp_path):
    directory = fake_run(tmp_path / "run", finished=False)
    for cut in (b'{"round": 7, "epo', b"\xff\xfe"):
        with open(directory.path / "metrics.jsonl", "ab") as file:
            file.write(cut)
        report(directory)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, made):
    """Opens the page; afterwards there must be no complaint from it, and no request but for itself."""
    said, asked = [], []

    def opened(**context):
        page = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context}).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((made / "report.html").as_uri())
        return page

    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [(made / "report.html").as_uri()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of two runs, one of them of a hostile name and with hostile costs."""
    path = tmp_path_factory.mktemp("made")
    evil = complete_run(path / HOSTILE.replace("/", ""))
    quoted = HOSTILE.replace(chr(34), chr(34) * 2)
    (evil.path / "cost.csv").write_text(f'method,"{quoted}"\n"{quoted}",1\n=1+1,2\n')
    runs = [complete_run(path / "a"), evil]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["report", *(str(run.path) for run in runs), "--out", str(path / "out")])
        main()
    return path / "out"


@pytest.mark.full
def test_the_page_shows_everything_and_its_runs_can_be_hidden(opened, made):
    page = opened()
    figures = {p.stem for p in (made / "figures").glob("*.svg")}
    assert {f.get_attribute("id") for f in page.query_selector_all("figure")} == figures
    assert all(f.query_selector("svg").bounding_box()["height"] > 50 for f in page.query_selector_all("figure"))
    tables = {p.stem for p in (made / "tables").glob("*.csv")}
    assert {t.get_attribute("id") for t in page.query_selector_all("table")} == tables
    boxes = page.query_selector_all(".runs input")
    assert len(boxes) == 2
    lines, maps = page.locator("#settling svg g.run-1"), page.locator("#run2_maps")
    assert lines.count() > 2
    assert maps.is_visible()
    boxes[1].click()
    assert not any(line.is_visible() for line in lines.all())
    assert not maps.is_visible()
    assert page.locator("#settling svg g.run-0").first.is_visible()
    boxes[1].click()
    assert maps.is_visible()


def test_the_page_says_values_under_the_pointer(opened):
    page = opened()
    tip = page.locator("#tip")

    def said_at(figure, x, y):
        svg = page.locator(f"#{figure} svg")
        svg.scroll_into_view_if_needed()
        box, view = svg.bounding_box(), svg.get_attribute("viewBox").split()
        scale = box["width"] / float(view[2])
        page.mouse.move(box["x"] + x * scale, box["y"] + y * scale)
        return tip.text_content() if tip.is_visible() else ""

    values = page.evaluate("JSON.parse(document.querySelector('#run1_maps script').textContent)")
    left, top, right, _ = values["cells"][0]["box"]
    # Row 0 is at the bottom: at the top left, the first snapshot's distance from the last.
    first_from_last = said_at("run1_maps", left + 2, top + 2)
    assert first_from_last.startswith("stage1/block1: round 0 (epoch 0.0) from round 12 (epoch 6.0): ")
    assert float(first_from_last.rsplit(" ", 1)[1]) > 0.3
    assert said_at("run1_maps", right - 2, top + 2).endswith(": 0.00")
    left, top, _, _ = values["cells"][-1]["box"]
    assert said_at("run1_maps", left + 2, top + 2).startswith("stage3/block3: ")
    *_, (x, y, text, run) = page.evaluate(
        "JSON.parse(document.querySelector('#accuracy_by_images script').textContent).points.filter((p) => !p[3])"
    )
    assert said_at("accuracy_by_images", x, y) == text
    assert (text[-24:], run) == (": 94.81 % after 24.576 k", 0)
    page.locator(".runs input").first.click()
    assert said_at("accuracy_by_images", x, y) != text


def test_tables_are_sorted_by_the_heading_that_is_pressed(opened):
    page = opened()
    button = page.locator("#retrainings th button", has_text="test accuracy, %")
    column = page.evaluate(
        "[...document.querySelectorAll('#retrainings th')].findIndex(h => h.textContent == 'test accuracy, %')"
    )
    for order in (False, True):
        button.click()
        cells = page.locator(f"#retrainings tbody td:nth-child({column + 1})").all_text_contents()
        numbers = [float(cell.replace(",", "")) for cell in cells]
        assert numbers == sorted(numbers, reverse=order)


def test_the_page_fits_a_phone_in_the_dark(opened):
    page = opened(viewport={"width": 360, "height": 740}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#settling svg").bounding_box()["width"] <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    text = page.locator("#settling svg text").first
    assert text.evaluate("t => getComputedStyle(t).fill") == "rgb(227, 230, 234)"
    sizes = page.evaluate(
        """[...document.querySelectorAll("figure svg text")].filter((text) => text.textContent).map((text) => {
             const matrix = text.getScreenCTM();
             return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.a, matrix.b);
           })"""
    )
    assert min(sizes) >= 11


@pytest.mark.full
def test_the_page_prints_to_a4_without_cutting_a_table_off(opened, made):
    page = opened(viewport={"width": 703, "height": 1000})
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 703
    tables = page.evaluate("[...document.querySelectorAll('table')].map(t => t.getBoundingClientRect().right)")
    assert max(tables) <= 703


@pytest.mark.full
def test_names_and_cells_cannot_become_markup(made):
    page = (made / "report.html").read_text()
    assert "<img" not in page
    assert "<script>alert" not in page
    assert page.count("</title>") == 1
    assert "\\|" in (made / "tables/run2_cost.md").read_text()


@pytest.mark.speed
def test_a_report_of_four_runs_of_a_hundred_snapshots_takes_half_a_minute_and_ten_megabytes(report, tmp_path):
    runs = []
    for number in range(4):
        run = fake_run(tmp_path / f"run{number}", rounds=99, model={"name": "preresnet34"}, seed=number)
        fake_search(run, snapshots=100, model="preresnet34", seed=number)
        runs.append(run)
    start = time.perf_counter()
    out = report(*runs)
    seconds, size = time.perf_counter() - start, (out / "report.html").stat().st_size
    print(f"\n{seconds:.1f} s, {size / 1e6:.2f} MB")
    assert seconds < 30
    assert size < 10e6


def test_a_lottery_is_a_part_of_its_own_beside_runs_or_alone(report, tmp_path, capsys):
    lottery = fake_levels(tmp_path / "lottery", {"ticket": [[0.8, 0.9]], "random": [[None, 0.7]]})
    figures = {f"levels_{what}" for what in ("accuracy", "end", "steps")}
    out = report(lottery)
    assert {p.stem for p in (out / "figures").iterdir()} == figures
    assert {p.stem for p in (out / "tables").iterdir()} == {"levels"}
    said = capsys.readouterr().out
    assert "result    ticket: at least as accurate as random at 1 of 1 levels, down to 80.00% of the weights; " in said
    assert "missing" not in said
    empty = fake_levels(tmp_path / "empty", {})
    out = report(fake_run(tmp_path / "run"), lottery, empty, out=tmp_path / "several")
    assert {f"lottery1_{name}" for name in figures} <= {p.stem for p in (out / "figures").iterdir()}
    assert {"runs", "lottery1_levels"} <= {p.stem for p in (out / "tables").iterdir()}
    said = capsys.readouterr().out
    assert "missing   empty: preresnet20 on digits, LoFT-4: no training has been finished yet" in said


@pytest.mark.parametrize("moment", [0, 1, 2, 3, 4, 5])
def test_a_report_killed_between_its_renames_is_known_as_its_own_and_cleared(moment, tmp_path, monkeypatch):
    """Each step of putting the new report in its place in turn is the last one."""
    from loft_jax.report import __main__ as command

    out, aside = tmp_path / "out", tmp_path / "out/.report.1.tmp"
    for name in ("figures", "tables"):
        (aside / name).mkdir(parents=True)
    (aside / "report.html").write_text("new")
    steps = iter(range(moment))

    class KilledError(BaseException):
        pass

    def counted(step):
        def call(*arguments, **options):
            if next(steps, None) is None:
                raise KilledError
            return step(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((command.os, "replace"), (command.shutil, "rmtree")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        with contextlib.suppress(KilledError):
            command._replace(out, aside)
    assert command.open_out(str(out)) == out
    (out / ".report.half").unlink(missing_ok=True)
    whole = (out / "report.html").exists()
    assert whole == (moment == 5)
    if not whole and (out / "figures").exists():
        with pytest.raises(UserError, match=r"holds figures but no report\.html"):
            command.open_out(str(out))


def test_what_a_killed_report_left_is_cleared(tmp_path):
    from loft_jax.report import __main__ as command

    directory = fake_run(tmp_path / "run")
    (tmp_path / "out/.report.1.tmp/figures").mkdir(parents=True)
    command.run([directory], [directory.read_config()], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "figures", "tables"}
