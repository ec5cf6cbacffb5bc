"""Tickets: which filters stay, by literal arrays; the file they are in, and what is refused."""

import json
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers.settings_helpers import refusal
from hypothesis import given, settings, strategies as st

from loft_jax import FilterGroup
from loft_jax.errors import RunStopped, UserError
from loft_jax.filters.scores import score_filters
from loft_jax.filters.selection import NORMS, SCOPES, draw_kept, kept_count, kept_overlaps
from loft_jax.tickets.ticket import Ticket, check_fits, load_ticket

TICKET = Ticket({"one": [0, 2], "two": [1]}, 0.5, "group", "l2", 40, "/runs/a", "c0ffee")
GROUPS = (
    FilterGroup("one", 4, {"params/a/kernel": 1}, partitioned=True),
    FilterGroup("two", 2, {"params/b/kernel": 1}, partitioned=True),
)


def arrays(scores):
    return {name: np.array(values, np.float32) for name, values in scores.items()}


@pytest.mark.parametrize(
    ("n", "ratio", "kept"),
    [
        (10, 0, 10),
        (1, 0.5, 1),
        (1, 0.99, 1),
        (5, 0.99, 1),
        (5, 1 - 1e-12, 1),
        (5, 0.5, 3),
        (64, 0.8, 13),
        (512, 0.8, 103),
        (10, 0.3, 7),
        # In doubles 0.29 * 100 and 0.57 * 100 fall short of 29 and 57.
        (100, 0.29, 71),
        (100, 0.57, 43),
        # What is truly short of a whole number is not rounded up.
        (1000, 0.0999, 901),
    ],
)
def test_of_n_filters_n_less_the_floor_of_the_share_stay_and_at_least_one(n, ratio, kept):
    assert kept_count(n, ratio) == kept


@pytest.mark.parametrize(
    ("scores", "ratio", "kept"),
    [
        ({"a": [3, 1, 2, 4]}, 0.5, {"a": [0, 3]}),
        ({"a": [3, 1, 2, 4]}, 0, {"a": [0, 1, 2, 3]}),
        ({"a": [1, 5, 2]}, 0.99, {"a": [1]}),
        ({"a": [1, 1, 1, 1]}, 0.5, {"a": [0, 1]}),
        ({"a": [1, 2, 1, 1]}, 0.5, {"a": [0, 1]}),
        ({"a": [0, 0, 0]}, 0.9, {"a": [0]}),
        # Short arrays are sorted stably by any algorithm.
        ({"a": [1, 2] * 50}, 0.75, {"a": list(range(1, 50, 2))}),
        # Every group by itself, whatever its scale.
        ({"b": [1, 2], "a": [300, 100, 200, 400]}, 0.5, {"b": [1], "a": [0, 3]}),
    ],
)
def test_in_scope_group_the_best_of_each_group_stay(scores, ratio, kept):
    assert draw_kept(arrays(scores), ratio, "group") == kept


@pytest.mark.compat
@pytest.mark.parametrize(
    ("scores", "ratio", "kept"),
    [
        # By their groups' means, 1.75 and 100, the second filter of "a" is above all of "b"; b0 and b3 tie.
        ({"a": [4, 3, 0, 0], "b": [100, 90, 110, 100]}, 0.5, {"a": [0, 1], "b": [0, 2]}),
        ({"a": [1, 2], "b": [20, 10]}, 0, {"a": [0, 1], "b": [0, 1]}),
        # Two stay; without a place of its own, "a" would have none.
        ({"a": [1, 1, 1, 1], "b": [4, 4, 0, 0]}, 0.75, {"a": [0], "b": [0]}),
        # One would stay of six, and there are three groups.
        ({"a": [1, 2], "b": [2, 1], "c": [1, 1]}, 0.9, {"a": [1], "b": [0], "c": [0]}),
        # A tie between groups goes to the earlier one.
        ({"b": [1, 1], "a": [2, 2]}, 0.25, {"b": [0, 1], "a": [0]}),
        # A group of zeros keeps its first filter, before the others' second, and the rest of it goes first.
        ({"a": [0, 0, 0], "b": [1, 2, 3]}, 0.5, {"a": [0], "b": [1, 2]}),
        ({"a": [0, 0, 0], "b": [0, 0]}, 0.4, {"a": [0, 1], "b": [0]}),
    ],
)
def test_in_scope_global_the_best_by_their_groups_mean_stay_and_one_of_each_group(scores, ratio, kept):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_kept(arrays(scores), ratio, "global") == kept


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=3),
    st.sampled_from([0, 0.1, 0.3, 0.5, 0.8, 0.99]),
    st.sampled_from(SCOPES),
)
def test_as_many_stay_as_the_ratio_says_none_empty_and_none_below_one_that_goes(values, ratio, scope):
    scores = arrays({f"g{i}": group for i, group in enumerate(values)})
    kept = draw_kept(scores, ratio, scope)
    assert list(kept) == list(scores)
    for name, indices in kept.items():
        assert indices
        assert indices == sorted(set(indices))
        assert {type(i) for i in indices} == {int}
        gone = np.delete(scores[name], indices)
        assert not len(gone) or scores[name][indices].min() >= gone.max()
    counts = [len(indices) for indices in kept.values()]
    if scope == "group":
        assert counts == [kept_count(len(group), ratio) for group in values]
    else:
        assert sum(counts) == max(len(values), kept_count(sum(map(len, values)), ratio))


@pytest.mark.parametrize(
    ("ratio", "scope", "message"),
    [
        (-0.1, "group", r"ratio=-0.1: must be in \[0, 1\)"),
        (1, "global", r"ratio=1: must be in \[0, 1\)"),
        (float("nan"), "group", "ratio=nan: must be in"),
        (0.5, "layer", "scope='layer': must be one of group, global"),
    ],
)
def test_a_ratio_or_scope_that_is_none_is_refused(ratio, scope, message):
    with pytest.raises(ValueError, match=message):
        draw_kept(arrays({"a": [1, 2]}), ratio, scope)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "r40-group-l2-0.5"),
        ({"round": 0, "scope": "global", "norm": "l1", "ratio": 0}, "r0-global-l1-0"),
        ({"ratio": 0.0}, "r40-group-l2-0"),
        ({"ratio": 0.125}, "r40-group-l2-0.125"),
    ],
)
def test_a_tickets_name_says_round_scope_norm_and_ratio(fields, name):
    assert replace(TICKET, **fields).name == name


def test_a_tickets_widths_are_the_numbers_it_keeps():
    assert TICKET.widths == {"one": 2, "two": 1}


def test_a_ticket_drawn_again_differs_only_in_its_filters_and_round():
    again = TICKET.redraw(arrays({"one": [1, 2, 3, 4], "two": [2, 1]}), 60)
    assert again == replace(TICKET, kept={"one": [2, 3], "two": [0]}, round=60)


@pytest.mark.compat
def test_a_ticket_is_read_back_as_it_was_written(tmp_path):
    tickets = tmp_path / "tickets"
    drawn = replace(TICKET, kept=draw_kept(arrays({"one": [3, 1, 2, 4], "two": [1, 2]}), 0.5, "group"))
    drawn.write(tickets / drawn.name)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == [
        "tickets/r40-group-l2-0.5/ticket.json"
    ]
    fields = json.loads((tickets / drawn.name / "ticket.json").read_text())
    assert set(fields) == {"kept", "ratio", "scope", "norm", "round", "run", "config_hash"}
    assert load_ticket(tickets, drawn.name) == drawn


def test_a_ticket_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    assert refusal(load_ticket, tmp_path, "nope") == (
        f"--ticket nope: no such ticket in {tmp_path}; draw some: python -m loft_jax.tickets {tmp_path.parent}"
    )
    for round_number in (7, 40):
        ticket = replace(TICKET, round=round_number)
        ticket.write(tmp_path / ticket.name)
    assert refusal(load_ticket, tmp_path, "nope").endswith("; there are r40-group-l2-0.5, r7-group-l2-0.5")


def test_a_ticket_that_cannot_be_written_is_a_message(tmp_path):
    (tmp_path / "tickets").write_text("a file")
    with pytest.raises(RunStopped, match=r"tickets/r40.*: cannot be written \(Not a directory\)"):
        TICKET.write(tmp_path / "tickets" / TICKET.name)


def altered(**fields):
    return json.dumps({**asdict(TICKET), **fields})


@pytest.mark.parametrize(
    "text",
    [
        '{"kept": {"one"',
        "",
        "[1, 2]",
        "null",
        '{"kept": {}}',
        altered(extra=1),
        altered(ratio="half"),
        altered(ratio=1.0),
        altered(round=None),
        altered(scope="layer"),
        altered(kept=[1]),
        altered(kept={"one": 5}),
        altered(kept={"one": [0, 2.0]}),
        altered(kept={"one": [False, True]}),
        altered(kept={"one": ["1"]}),
    ],
)
def test_a_file_that_holds_no_ticket_is_refused(tmp_path, write, text):
    (tmp_path / "mine").mkdir()
    path = write(text, "mine/ticket.json")
    message = refusal(load_ticket, tmp_path, "mine")
    assert message.startswith(f"{path}: holds no ticket (")
    assert "draw it again" in message


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"two": [1]}, "'one' is not in both"),
        ({"one": [0], "two": [1], "three": [0]}, "'three' is not in both"),
        ({"one": [], "two": [1]}, "'one' must keep ascending filter indices, at least one"),
        ({"one": [0], "two": [1, 0]}, "'two' must keep ascending"),
        ({"one": [1, 1], "two": [1]}, "'one' must keep ascending"),
        ({"one": [0, 4], "two": [1]}, "'one' keeps filter 4, and the model has 4"),
        ({"one": [0], "two": [2]}, "'two' keeps filter 2, and the model has 2"),
        ({"one": [-1], "two": [1]}, "'one' keeps filter -1, and the model has 4"),
        ({"one": [-1, 2], "two": [1]}, "'one' keeps filter -1"),
    ],
)
def test_a_ticket_that_does_not_fit_the_model_is_refused_by_group(kept, message):
    check_fits(TICKET, GROUPS, "c0ffee")
    said = refusal(check_fits, replace(TICKET, kept=kept), GROUPS, "c0ffee")
    assert said.startswith(f"ticket r40-group-l2-0.5: filter group {message}")


def test_a_ticket_of_another_config_is_refused_with_both():
    with pytest.raises(UserError, match="run of config c0ffee, and this run's is decaf; draw it again"):
        check_fits(TICKET, GROUPS, "decaf")


def test_an_overlap_is_intersection_over_union():
    overlaps = kept_overlaps([[0, 1], [1, 2], [3], [0, 1]], 4)
    assert overlaps.dtype == np.float32
    third = np.float32(1) / 3
    expected = [[1, third, 0, 1], [third, 1, 0, third], [0, 0, 1, 0], [1, third, 0, 1]]
    np.testing.assert_allclose(overlaps, expected, rtol=1e-6, atol=0)


def test_a_ticket_knows_the_norms_that_scores_have():
    variables = {"params": {"a": {"kernel": np.ones((1, 4)), "scale": np.ones(4)}}}
    group = replace(GROUPS[0], axes={"params/a/kernel": 1, "params/a/scale": 0})
    for norm in sorted(set(NORMS) - {"taylor"}):
        assert score_filters(variables, [group], norm)["one"].shape == (4,)
    with pytest.raises(ValueError, match="norm='taylor': needs gradients on training batches"):
        score_filters(variables, [group], "taylor")
    with pytest.raises(ValueError, match=f"norm='l3': must be one of {', '.join(NORMS)}$"):
        score_filters(variables, [group], "l3")
