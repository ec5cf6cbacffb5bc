"""What the figures of curves say at their points."""

import json

import pytest
from helpers.fake_runs import complete_run, fake_levels, fake_retraining, fake_run, fake_search, read

from loft_jax.report import levels, lines, ticket_lines
from loft_jax.report.comparison import group_comparable_runs
from loft_jax.report.curves import seconds_a_round
from loft_jax.storage.records import write_object


def said(chart):
    """What a figure says at its points."""
    return [text for *_, texts, _ in chart._points for text in texts]


def test_figures_say_the_numbers_they_show(tmp_path):
    run = read(complete_run(tmp_path / "run"))
    comparison = group_comparable_runs([run])[0]
    overlaps = run.search.overlaps["0.8/all"]
    points = said(ticket_lines.kept_overlap("x", comparison))
    by_ratio = [text for text in points if "80% removed" in text]
    assert by_ratio[0] == f"LoFT-4, 80% removed, epoch 0.00: {overlaps[0, -1]:.2f}"
    assert by_ratio[-1] == "LoFT-4, 80% removed, epoch 6.00: 1.00"
    assert said(ticket_lines.tickets_by_snapshot("x", comparison)) == [
        "LoFT-4, 80% removed: 90.50 ± 2.12 % (seeds 0 1)",
        "LoFT-4, 80% removed: 94.00 ± 1.41 % (seeds 0 1)",
    ]
    assert said(lines.time_of_a_round("x", [(0, "LoFT-4", seconds_a_round(run))])) == [
        "LoFT-4: train 0.9 s, 75%",
        "LoFT-4: sync 0.1 s, 8%",
        "LoFT-4: evaluation 0.2 s, 17%",
    ]


def test_a_ticket_rewound_to_a_later_round_is_not_in_the_figure_of_snapshots(tmp_path):
    directory = fake_run(tmp_path / "run")
    for ticket_round, rewound in ((4, 0), (12, 0), (8, 4)):
        fake_retraining(directory, 0.5, [0.9], ticket_round=ticket_round)
        path = directory.retrain / f"r{ticket_round}-group-l2-0.5/rewind/seed0/summary.json"
        path.write_text(path.read_text().replace('"rewind_to": 0', f'"rewind_to": {rewound}'))
    chart = ticket_lines.tickets_by_snapshot("x", group_comparable_runs([read(directory)])[0])
    assert [list(x) for _, x, *_ in chart._points] == [[2.0, 6.0]]


def test_controls_are_shown_beside_the_ticket_and_the_first_rounds_apart(tmp_path):
    directory = fake_run(tmp_path / "run")
    for ticket_round, mode, accuracy in ((12, "rewind", 0.95), (12, "random", 0.9), (0, "rewind", 0.7)):
        fake_retraining(directory, 0.5, [accuracy], mode, ticket_round=ticket_round)
    assert sorted(said(ticket_lines.tickets_and_controls("x", 0, "LoFT-4", read(directory)))) == [
        *("random: 90.00 % (seeds 0)", "rewind, ticket of round 0: 70.00 % (seeds 0)", "rewind: 95.00 % (seeds 0)"),
    ]


def test_a_marker_says_when_a_curve_has_settled(tmp_path):
    run = read(complete_run(tmp_path / "run"))
    chart = lines.settling("x", group_comparable_runs([run])[0])
    marks = [(float(x[0]), text) for _, x, _, (text, *_), _ in chart._points if "settled" in text]
    assert marks == [(4.0, "LoFT-4: distance settled at epoch 4.00"), (3.0, "LoFT-4: loss settled at epoch 3.00")]
    assert "by construction" in lines.distance_by_stage("x", 0, "LoFT-4", run).caption


def test_accuracies_are_said_with_what_they_cost(tmp_path):
    comparison = group_comparable_runs([read(fake_run(tmp_path / "run"))])[0]
    last = [said(lines.accuracy_against("x", comparison, cost))[-1] for cost in ("bytes", "images", "seconds")]
    assert last == [f"LoFT-4: 94.81 % after {cost}" for cost in ("12 MB", "24.576 k", "12 s")]


def test_the_overlaps_curves_say_how_their_tickets_are_drawn(tmp_path):
    directory = fake_run(tmp_path / "run")
    fake_search(directory, ratios=(0.5,))
    write_object(directory.search, json.loads(directory.search.read_text()) | {"scope": "global"})
    texts = said(ticket_lines.kept_overlap("x", group_comparable_runs([read(directory)])[0]))
    assert texts[-1] == "LoFT-4, 50% removed (global), epoch 6.00: 1.00"


def test_levels_are_drawn_against_the_share_of_weights_left(tmp_path):
    directory = fake_levels(tmp_path / "run", {"reinit": [[None, 0.7]] * 2, "ticket": [[0.8, 0.9], [0.6, 0.8]]})
    found = levels.LotteryFiles.read(directory, directory.read_config())
    assert (found.name, found.missing) == ("run: preresnet20 on digits, LoFT-4", [])
    drawn = {draw().name: draw() for draw in levels.figures_of_levels(found, "")}
    assert list(drawn) == ["levels_accuracy", "levels_end", "levels_steps"]
    assert said(drawn["levels_accuracy"]) == [
        "ticket, 100.00 % left: 70.00 ± 14.14 (seeds 0 1)",
        "ticket, 80.00 % left: 85.00 ± 7.07 (seeds 0 1)",
        "reinit, 80.00 % left: 70.00 (seeds 0 1)",
    ]
    assert said(drawn["levels_end"])[0] == "ticket, 100.00 % left: 60.00 ± 14.14 (seeds 0 1)"
    assert said(drawn["levels_steps"])[0] == "ticket, 100.00 % left: 20.00 (seeds 0 1)"
    (ax,) = drawn["levels_accuracy"].figure.axes
    assert ax.get_xscale() == "log"
    assert ax.get_xlim()[0] > ax.get_xlim()[1], "weights are removed from left to right"
    (table,) = levels.tables_of_levels(found, "")
    assert [row["early test accuracy, %"] for row in table.rows] == [70.0, 85.0, 70.0]


def texts_of(chart):
    """Labels of the lines of a figure."""
    return [label for ax in chart.figure.axes for label in ax.get_legend_handles_labels()[1]]


def test_without_a_control_there_is_no_figure_of_controls_and_with_one_the_unpruned_network_is_a_line(tmp_path):
    directory = fake_run(tmp_path / "run")
    fake_retraining(directory, 0.5, [0.95])
    assert ticket_lines.tickets_and_controls("x", 0, "LoFT-4", read(directory)) is None
    fake_retraining(directory, 0.5, [0.8], "reinit")
    chart = ticket_lines.tickets_and_controls("x", 0, "LoFT-4", read(directory))
    assert "random" not in chart.caption
    (line,) = [line for line in chart.figure.axes[0].lines if line.get_label() == "unpruned"]
    assert list(line.get_ydata()) == pytest.approx([94.81, 94.81], abs=0.01), "the end of the run"
    fake_retraining(directory, 0.0, [0.97, 0.99])
    chart = ticket_lines.tickets_and_controls("x", 0, "LoFT-4", read(directory))
    (line,) = [line for line in chart.figure.axes[0].lines if line.get_label() == "unpruned"]
    assert list(line.get_ydata()) == pytest.approx([98, 98])


def test_the_unpruned_network_is_a_line_beside_tickets_by_snapshot(tmp_path):
    directory = fake_run(tmp_path / "run")
    for ticket_round in (4, 12):
        fake_retraining(directory, 0.5, [0.9], ticket_round=ticket_round)
    chart = ticket_lines.tickets_by_snapshot("x", group_comparable_runs([read(directory)])[0])
    assert texts_of(chart) == ["LoFT-4", "unpruned", "50% removed"]


def test_an_axis_of_accuracies_shows_the_differences_at_the_end():
    low, high = lines._accuracy_range([[10, 50, 80, 90, 94, 95], [10, 40, 70, 88, 93, 94]])
    assert (low, high) == pytest.approx((70 - 2.5, 95 + 2.5))
    low, high = lines._accuracy_range([[94.0, 94.1, 94.2]])
    assert (low, high) == pytest.approx((93.55, 94.65))
    assert lines._accuracy_range([[0.0, 0.0]])[0] == 0


def test_panels_and_figures_of_what_was_not_done_are_left_out(tmp_path):
    comparison = group_comparable_runs([read(fake_run(tmp_path / "run"))])[0]
    chart = lines.settling("x", comparison)
    assert (len(chart.figure.axes), chart.title) == (1, "Loss over training")
    assert "distance" not in chart.caption
    assert ticket_lines.kept_overlap("x", comparison) is None
    assert ticket_lines.tickets_by_snapshot("x", comparison) is None
    directory = fake_run(tmp_path / "plain", loft={"workers": 1})
    rows = [row | ({"bytes_on_the_wire": 0.0} if row["round"] else {}) for row in directory.rows()]
    (directory.path / "metrics.jsonl").unlink()
    for row in rows:
        directory.append(row)
    plain = group_comparable_runs([read(directory)])[0]
    assert lines.accuracy_against("x", plain, "bytes") is None
    assert lines.accuracy_against("x", plain, "images") is not None


def test_the_winning_ticket_is_said_to_be_the_last_snapshot_where_it_is(tmp_path):
    directory = complete_run(tmp_path / "run")
    own = lines.settling("x", group_comparable_runs([read(directory)])[0])
    assert "from the winning ticket (the run's own last snapshot)" in own.caption
    write_object(directory.search, json.loads(directory.search.read_text()) | {"reference_round": 4})
    other = lines.settling("x", group_comparable_runs([read(directory)])[0])
    assert "from the winning ticket (the run's own round 4)" in other.caption
