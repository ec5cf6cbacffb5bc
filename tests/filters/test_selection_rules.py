"""Rules of single groups and of numbers of filters, and the scores beside the norms of kernels."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from loft_jax import FilterGroup
from loft_jax.filters import Place, Rules, draw_kept, gate_derivatives, kept_count, score_filters

SCORES = {"stage1/a": np.array([4.0, 3, 2, 1]), "stage1/b": np.array([1.0, 2, 3, 4]), "head": np.arange(10.0)}


def counts(ratio, scope="group", **rules):
    return {name: len(kept) for name, kept in draw_kept(SCORES, ratio, scope, Rules(**rules)).items()}


@pytest.mark.parametrize("scope", ["group", "global"])
def test_without_rules_nothing_changes(scope):
    assert draw_kept(SCORES, 0.5, scope, Rules()) == draw_kept(SCORES, 0.5, scope)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"ratios": (("stage1/*", 0.25),)}, (3, 3, 5)),
        # The last pattern that matches counts.
        ({"ratios": (("stage1/*", 0.25), ("*/b", 0.75))}, (3, 1, 5)),
        ({"keep_whole": ("*/a", "head")}, (4, 2, 10)),
        ({"keep_whole": ("head",), "ratios": (("*", 0.75),)}, (1, 1, 10)),
        ({"at_least": 3}, (3, 3, 5)),
        # A group that is narrower stays whole.
        ({"at_least": 6}, (4, 4, 6)),
        ({"round_to": 4}, (4, 4, 8)),
        ({"round_to": 8}, (4, 4, 8)),
        ({"round_to": 4, "at_least": 9}, (4, 4, 10)),
    ],
)
def test_rules_decide_how_many_stay_of_each_group(rules, expected):
    assert tuple(counts(0.5, **rules).values()) == expected
    for name, kept in draw_kept(SCORES, 0.5, "group", Rules(**rules)).items():
        best = np.argsort(-SCORES[name], kind="stable")[: len(kept)]
        assert kept == sorted(best.tolist()), "the best of the group stay"


def test_in_scope_global_a_group_with_a_rule_is_drawn_by_itself():
    found = counts(0.5, "global", keep_whole=("head",))
    assert found["head"] == 10
    assert found["stage1/a"] + found["stage1/b"] == kept_count(8, 0.5)
    assert counts(0.5, "global", ratios=(("*", 0.5),)) == counts(0.5, "group")
    assert all(n >= 2 for n in counts(0.9, "global", at_least=2).values())


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        ({}, ""),
        ({"at_least": 4}, "least4"),
        ({"round_to": 8}, "by8"),
        ({"at_least": 4, "round_to": 8}, "least4-by8"),
        ({"round_to": 8, "score_batches": 16}, "by8-on16"),
        ({"groups": "paper"}, "paper"),
        ({"groups": "paper", "at_least": 4}, "paper-least4"),
    ],
)
def test_rules_have_names_and_come_back_from_json(rules, name):
    assert Rules(**rules).name == name
    assert Rules.from_json({"name": name, **asdict(Rules(**rules))}) == Rules(**rules)


def test_names_of_patterns_differ():
    some = [Rules(), Rules((("a", 0.5),)), Rules((("a", 0.25),)), Rules(keep_whole=("a",)), Rules(keep_whole=("b",))]
    assert len({rules.name for rules in some}) == len(some)
    assert Rules.from_json({"ratios": [["a", 0.5]]}) == some[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"at_least": 0}, "at_least=0 must be an integer of at least 1"),
        ({"round_to": 2.0}, "round_to=2.0 must be"),
        ({"round_to": True}, "round_to=True must be"),
        ({"score_batches": 0}, "score_batches=0 must be"),
        ({"groups": "papers"}, "groups='papers' must be one of all, paper"),
        ({"ratios": [["a", 1]]}, r"the ratio of 'a', 1, must be in \[0, 1\)"),
        ({"ratios": [[1, 0.5]]}, "1 must be the pattern"),
        ({"ratios": [["a"]]}, "not enough values"),
        ({"ratios": 5}, "rules: "),
        ({"keep_whole": [1]}, "must be patterns"),
        ({"other": 1}, "unexpected keyword argument 'other'"),
    ],
)
def test_rules_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Rules.from_json(fields)


def test_a_pattern_that_matches_no_group_is_refused():
    for rules in (Rules(keep_whole=("stage9/*",)), Rules((("stage9/*", 0.5),))):
        with pytest.raises(ValueError, match=r"pattern 'stage9/\*': matches no filter group; there are stage1/a, "):
            draw_kept(SCORES, 0.5, "group", rules)


BLOCKS = {
    name: np.arange(8.0)
    for name in (
        "stage1/block1",
        "stage1/block2",
        "stage2/block1",
        "stage2/block11",
        "stage1_block1/conv1",
        "stage3_block2/conv1",
    )
}


@pytest.mark.parametrize("scope", ["group", "global"])
def test_the_papers_groups_are_all_but_the_first_block_of_a_stage(scope):
    paper = draw_kept(BLOCKS, 0.5, scope, Rules(groups="paper"))
    first = {name for name in BLOCKS if name.replace("_", "/").split("/")[1] == "block1"}
    assert {name for name, kept in paper.items() if len(kept) == 8} == first
    patterns = draw_kept(BLOCKS, 0.5, scope, Rules(keep_whole=("*/block1", "*_block1/*")))
    assert paper == patterns


@pytest.mark.parametrize("groups", [SCORES, {"stage1/block1": np.arange(4.0), "stage2/block1": np.arange(4.0)}])
def test_without_a_later_block_there_are_no_groups_of_the_paper(groups):
    with pytest.raises(
        ValueError, match=r"--groups paper: keeps the first block .* there are stage1/.*; use --keep_whole"
    ):
        draw_kept(groups, 0.5, "group", Rules(groups="paper"))


# Scores

RNG = np.random.default_rng(0)
VARIABLES = {
    "params": {
        "conv1": {"kernel": RNG.normal(size=(3, 3, 2, 5)).astype(np.float32)},
        "norm": {"scale": RNG.normal(size=5).astype(np.float32), "bias": RNG.normal(size=5).astype(np.float32)},
        "conv2": {"kernel": RNG.normal(size=(1, 1, 8, 4)).astype(np.float32)},
    },
    "batch_stats": {"norm": {"mean": np.full(5, 100, np.float32)}},
}
AXES = {
    "params/conv1/kernel": 3,
    "params/norm/scale": 0,
    "params/norm/bias": 0,
    # Behind three other channels.
    "params/conv2/kernel": (Place(2, offset=3),),
    "batch_stats/norm/mean": 0,
}
GROUP = FilterGroup("one", 5, AXES, partitioned=True, kernel="params/conv1/kernel")


@pytest.mark.parametrize("norm", ["bn_scale", "fpgm", "whole_group"])
def test_scores_are_those_of_a_loop_over_the_filters(norm):
    params, expected = VARIABLES["params"], []
    filters = [params["conv1"]["kernel"][..., i].ravel().astype(float) for i in range(5)]
    for i in range(5):
        rest = [params["norm"]["scale"][i], params["norm"]["bias"][i], *params["conv2"]["kernel"][:, :, 3 + i].ravel()]
        expected.append(
            {
                "bn_scale": abs(params["norm"]["scale"][i]),
                "fpgm": np.mean([np.sqrt(np.sum((filters[i] - other) ** 2)) for other in filters]),
                "whole_group": np.sqrt(np.sum(filters[i] ** 2) + np.sum(np.square(rest))),
            }[norm]
        )
    found = score_filters(VARIABLES, [GROUP], norm)
    np.testing.assert_allclose(found["one"], expected, rtol=1e-5)


def test_a_filter_in_the_middle_of_its_group_has_the_lowest_fpgm():
    kernel = np.array([[0.0, 1, 2, 3, 40], [0, 1, 2, 3, 40]])
    group = FilterGroup("one", 5, {"params/a/kernel": 1}, partitioned=True)
    assert np.argmin(score_filters({"params": {"a": {"kernel": kernel}}}, [group], "fpgm")["one"]) == 2


def test_a_group_without_a_norm_has_no_scale():
    group = FilterGroup("one", 5, {"params/conv1/kernel": 3}, partitioned=True)
    with pytest.raises(ValueError, match="'one' has no batch norm whose scale could be its score; use norm l2"):
        score_filters(VARIABLES, [group], "bn_scale")
    with pytest.raises(ValueError, match="declares 'params/b/scale', which is not among the variables"):
        score_filters(VARIABLES, [FilterGroup("one", 5, {"params/b/scale": 0}, partitioned=True)], "bn_scale")
    with pytest.raises(ValueError, match="'params/norm/scale' has 5 filters, and the model declares 4"):
        score_filters(VARIABLES, [FilterGroup("one", 4, {"params/norm/scale": 0}, partitioned=True)], "bn_scale")


def test_the_derivative_of_a_gate_is_weight_times_gradient_of_what_reads_the_filter():
    slopes = {"params": {name: dict(layer) for name, layer in VARIABLES["params"].items()}}
    slopes["params"]["conv2"]["kernel"] = RNG.normal(size=(1, 1, 8, 4)).astype(np.float32)
    products = VARIABLES["params"]["conv2"]["kernel"] * slopes["params"]["conv2"]["kernel"]
    expected = [products[:, :, 3 + i].sum() for i in range(5)]
    for readers in (None, ("params/conv2/kernel",)):
        group = replace(GROUP, readers=readers)
        np.testing.assert_allclose(gate_derivatives(VARIABLES, slopes, [group])["one"], expected, rtol=1e-5)
    norm = replace(GROUP, readers=("params/norm/scale",))
    np.testing.assert_allclose(
        gate_derivatives(VARIABLES, slopes, [norm])["one"], VARIABLES["params"]["norm"]["scale"] ** 2, rtol=1e-5
    )


def test_filters_that_no_kernel_reads_have_no_derivative():
    group = FilterGroup("one", 5, {"params/conv1/kernel": 3}, partitioned=True)
    with pytest.raises(ValueError, match="'one' has no kernel that reads its filters; use norm l2"):
        gate_derivatives(VARIABLES, VARIABLES, [group])
    with pytest.raises(ValueError, match="norm='taylor': needs gradients on training batches"):
        score_filters(VARIABLES, [group], "taylor")
