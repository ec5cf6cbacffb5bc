"""The tickets command: what it finds in runs made by hand, what it writes, and how it says no."""

import csv
import gc
import json
import math
import shutil
import subprocess
import sys
import weakref
from functools import cache
from itertools import product
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.runs import config_of, opened
from helpers.settings_helpers import refusal
from safetensors.numpy import load_file

from loft_jax import create_model, prune
from loft_jax.storage import RunDirectory
from loft_jax.storage.checkpoints import Store
from loft_jax.tickets import SearchFiles, __main__ as tickets, load_ticket, snapshots

WIDTHS = {f"stage{s}/block{b}": 2 * 2**s for s in (1, 2, 3) for b in (1, 2, 3)}
ROUNDS, RATIOS = [0, 4, 6], ["0.8", "0.5", "0.3"]
# Round 0 comes before any loss; round 4 was not evaluated; of round 6 there is no row.
ROWS = [{"round": 0, "epoch": 0.0, "test/accuracy": 0.125}, {"round": 4, "epoch": 0.75, "train/loss": 2.5}]
COLUMNS = "run group round epoch to_reference to_reference_normalised to_previous to_previous_normalised train_loss"


def ranks_of(round_number, group, seed=0):
    """The ranking at a round: literal in the first group; in the others the first half of the filters stays on top."""
    if group == "stage1/block1":
        return np.array({0: [1, 2, 3, 4], 4: [3, 1, 2, 4], 6: [3, 4, 1, 2]}.get(round_number, [4, 3, 2, 1]))
    rng = np.random.default_rng([seed if round_number else 0, round_number, *map(ord, group)])
    half = WIDTHS[group] // 2
    return np.concatenate([rng.permutation(half) + 1, rng.permutation(half) + half + 1])


@cache
def variables_of(name, width):
    shapes = jax.eval_shape(create_model(name, 10, width=width).init, jax.random.key(0), np.zeros((1, 8, 8, 1)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def states(rounds=ROUNDS, seed=0, spoilt=None):
    """Variables at rounds, that rank as `ranks_of` by l2 and the other way round by l1; any seed has the same start."""
    made = {r: jax.tree.map(np.copy, variables_of("preresnet20", 4)) for r in rounds}
    for r, group in product(rounds, WIDTHS):
        kernel = made[r]["params"][group.replace("/", "_")]["conv1"]["kernel"]
        kernel[:] = 0
        for index, rank in enumerate(ranks_of(r, group, seed)):
            # A worse filter spreads its norm over more entries.
            kernel.reshape(-1, len(kernel.T))[:rank, index] = (2 - rank / 100) / math.sqrt(rank)
    if spoilt is not None:
        made[4]["params"]["stage2_block2"]["conv1"]["kernel"][1, 1, 0, 3] = spoilt
    return made


def search(*arguments):
    """Run the command in this process, whose devices are set already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loft_jax.devices.configure_jax", lambda config: None)
        patch.setattr(sys, "argv", ["tickets", *map(str, arguments)])
        tickets.main()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs, to be read only. `searched` is `run` after a search; `a@b` started like it, and `stranger` did not."""
    path, stranger = tmp_path_factory.mktemp("made"), states([0, 3], seed=1)
    stranger[0]["params"]["stem"]["kernel"] += 0.01
    for name, saved in {
        "run": states(),
        "a@b": states([0, 3, 9], seed=1),
        "stranger": stranger,
        "wide": {0: variables_of("preresnet20", 8)},
        "wider since": states([0]) | {4: variables_of("preresnet20", 8)},
        "deeper since": states([0]) | {4: variables_of("preresnet18", 4)},
        "incomplete": states([0]) | {4: {"params": variables_of("preresnet20", 4)["params"]}},
        "nan": states(spoilt=np.nan),
        "inf": states(spoilt=-np.inf),
        "empty": {},
    }.items():
        directory = opened(path / name, config_of(model={"width": 8 if name == "wide" else 4}))
        for row in ROWS:
            directory.append(row)
        store = Store(directory.snapshots)
        for round_number, variables in saved.items():
            store.save(round_number, {"variables": variables, "round": np.int32(round_number)})
        store.close()
        # As a process leaves it that dies while it saves.
        (directory.snapshots / "8.orbax-checkpoint-tmp").mkdir()
    search(shutil.copytree(path / "run", path / "searched"))
    return path


@pytest.fixture
def searched(made):
    return made / "searched"


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made / "run", tmp_path / "run")


def distances(path):
    rows = csv.DictReader((path / "distances.csv").read_text().splitlines())
    return {(int(row["round"]), row["group"]): row for row in rows}


def drawn(path):
    return {file.parent.name: json.loads(file.read_text()) for file in path.glob("tickets/*/ticket.json")}


def contents(path):
    return {p.relative_to(path): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


def assert_distances(row, column, reference, other):
    """Sum over the reference's positions i of 1/i |ln i - ln sigma(i)|, and that over its mean by chance."""
    places, sigma = range(1, len(reference) + 1), other[np.argsort(reference)]
    distance = sum(abs(math.log(i) - math.log(sigma[i - 1])) / i for i in places)
    chance = sum(abs(math.log(i) - math.log(j)) / i for i in places for j in places) / len(reference)
    found = [float(row[column]), float(row[f"{column}_normalised"])]
    np.testing.assert_allclose(found, [distance, distance / chance], rtol=1e-5, atol=0)


@pytest.mark.compat
def test_the_rankings_are_those_of_the_conv1_norms(searched):
    found = np.load(searched / "rankings.npz")
    assert set(found) == {*WIDTHS, "rounds"}
    for group, n in WIDTHS.items():
        blocks = [variables["params"][group.replace("/", "_")] for variables in states().values()]
        kernels = np.array([block["conv1"]["kernel"] for block in blocks], np.float64)
        order = np.argsort(-np.sqrt((kernels**2).sum(axis=(1, 2, 3))))
        assert (found[group].dtype, found[group].shape) == (np.int32, (3, n))
        np.testing.assert_array_equal(found[group], np.argsort(order) + 1, err_msg=group)
    assert found["stage1/block1"].tolist() == [[1, 2, 3, 4], [3, 1, 2, 4], [3, 4, 1, 2]]


def test_the_distances_are_the_papers_formula_on_every_group_and_snapshot(searched):
    rows = distances(searched)
    assert (searched / "distances.csv").read_text().split("\n")[0] == ",".join([*COLUMNS.split(), "test_accuracy"])
    assert list(rows) == [(r, group) for r in ROUNDS for group in WIDTHS]
    facts = {0: ["0.0", "", "0.125"], 4: ["0.75", "2.5", ""], 6: ["", "", ""]}
    for (r, group), row in rows.items():
        assert [row["run"], row["epoch"], row["train_loss"], row["test_accuracy"]] == [str(searched), *facts[r]]
        assert_distances(row, "to_reference", ranks_of(6, group), ranks_of(r, group))
        if r:
            assert_distances(row, "to_previous", ranks_of({4: 0, 6: 4}[r], group), ranks_of(r, group))
        else:
            assert row["to_previous"] == row["to_previous_normalised"] == ""


@pytest.mark.parametrize(
    ("arguments", "rounds", "sizes"),
    [
        ([], ROUNDS, {"group-l2-0.8": (1, 2, 4), "group-l2-0.5": (2, 4, 8), "group-l2-0.3": (3, 6, 12)}),
        (["--ratios", "0", "0.99", "--rounds", "6"], [6], {"group-l2-0": (4, 8, 16), "group-l2-0.99": (1, 1, 1)}),
        (["--ratios", "-0.0", "--rounds", "6"], [6], {"group-l2-0": (4, 8, 16)}),
        # A setting that leaves the run as it is may be given.
        (["--ratios", "0.75", "--norm", "l1", "--data.readers", "1"], ROUNDS, {"group-l1-0.75": (1, 2, 4)}),
        # Of 84 filters 21 stay: the best of each group, then the widest's, whose best lie farthest above the mean.
        (["--ratios", "0.75", "--scope", "global", "--rounds", "4", "0"], [0, 4], {"global-l2-0.75": (1, 1, 5)}),
    ],
)
def test_ratio_scope_and_norm_decide_what_is_kept_and_rounds_which_tickets_are_written(arguments, rounds, sizes, run):
    search(run, *arguments)
    found = drawn(run)
    assert found.keys() == {f"r{r}-{name}" for r in rounds for name in sizes}
    for r, (name, of_stage) in product(rounds, sizes.items()):
        scope, norm, ratio = name.split("-")
        ranks = {g: n + 1 - ranks_of(r, g) if norm == "l1" else ranks_of(r, g) for g, n in WIDTHS.items()}
        kept = {g: np.flatnonzero(ranks[g] <= of_stage[int(g[5]) - 1]).tolist() for g in WIDTHS}
        origin = {"round": r, "run": str(run), "config_hash": config_of().hash()}
        assert found[f"r{r}-{name}"] == {"kept": kept, "ratio": float(ratio), "scope": scope, "norm": norm, **origin}
    assert np.load(run / "rankings.npz")["rounds"].tolist() == ROUNDS, "all but the tickets is of all snapshots"


@pytest.mark.parametrize(
    ("arguments", "name", "of_stage"),
    [
        (["--round_to", "8"], "r6-group-l2-0.5-by8", (4, 8, 8)),
        (["--at_least", "3"], "r6-group-l2-0.5-least3", (3, 4, 8)),
        (["--keep_whole", "stage1/*", "--group_ratios", "stage2/*=0.75"], "r6-group-l2-0.5-*", (4, 2, 8)),
        (["--norm", "whole_group"], "r6-group-whole_group-0.5", (2, 4, 8)),
        (["--norm", "bn_scale"], "r6-group-bn_scale-0.5", (2, 4, 8)),
        (["--norm", "fpgm"], "r6-group-fpgm-0.5", (2, 4, 8)),
    ],
)
def test_rules_and_scores_give_tickets_of_their_own_name_that_are_read_back(arguments, name, of_stage, run):
    search(run, "--ratios", "0.5", "--rounds", "6")
    search(run, "--ratios", "0.5", "--rounds", "6", *arguments)
    (path,) = [p for p in run.glob(f"tickets/{name}") if p.name != "r6-group-l2-0.5"]
    assert (run / "tickets/r6-group-l2-0.5/ticket.json").exists(), "the ticket without rules stays"
    ticket = load_ticket(run / "tickets", path.name)
    assert ticket.name == path.name
    assert {group: len(kept) for group, kept in ticket.kept.items()} == {g: of_stage[int(g[5]) - 1] for g in WIDTHS}
    found = SearchFiles.read(RunDirectory(run))
    assert found.pruning(0.5).rules == ticket.rules.name


def test_the_overlaps_are_intersection_over_union_of_the_kept_filters(searched):
    found, groups = np.load(searched / "overlaps.npz"), [*WIDTHS, "all"]
    assert set(found) == {"rounds", *(f"{ratio}/{group}" for ratio in RATIOS for group in groups)}
    for ratio in RATIOS:
        kept = [drawn(searched)[f"r{r}-group-l2-{ratio}"]["kept"] for r in ROUNDS]
        for group in groups:
            sets = [{(g, i) for g in k for i in k[g] if group in (g, "all")} for k in kept]
            expected = [[len(one & other) / len(one | other) for other in sets] for one in sets]
            np.testing.assert_allclose(found[f"{ratio}/{group}"], expected, rtol=1e-6)
    # By hand: the first group keeps 0 1, then 1 2, then 2 3; the others their first halves, 40 filters.
    np.testing.assert_allclose(found["0.5/stage1/block1"], [[1, 1 / 3, 0], [1 / 3, 1, 1 / 3], [0, 1 / 3, 1]], rtol=1e-6)
    np.testing.assert_allclose(found["0.5/all"][0], [1, 41 / 43, 40 / 44], rtol=1e-6)


@pytest.mark.parametrize(("suffix", "reference_round"), [("", 9), ("@3", 3)])
def test_a_run_that_started_alike_can_be_the_reference_beside_the_baselines(suffix, reference_round, made, run, capsys):
    search(run, "--reference", f"{made}/a@b{suffix}", "--ratios", "0.5")
    for (r, group), row in distances(run).items():
        assert_distances(row, "to_reference", ranks_of(reference_round, group, seed=1), ranks_of(r, group))
    printed = capsys.readouterr()
    assert printed.err == ""
    start = [float(distances(run)[0, group]["to_reference_normalised"]) for group in WIDTHS]
    (line,) = [line for line in printed.out.splitlines() if line.startswith("baseline")]
    assert f" {np.mean(start):.3f} ({max(start):.3f}): the initialisation's ranking; 1.000: chance" in line


def test_exported_weights_are_the_pruned_network_of_the_last_snapshot_or_the_named_ones(run):
    for options, exported in ([], [6]), (["--rounds", "0"], [0, 6]):
        search(run, "--export", "--ratios", "0.5", *options)
        files = {str(file.relative_to(run)) for file in run.rglob("weights.*")}
        assert files == {f"tickets/r{r}-group-l2-0.5/weights.safetensors" for r in exported}
    groups = create_model("preresnet20", 10, width=4).filter_groups()
    for r, variables in states([0, 6]).items():
        weights = load_file(run / f"tickets/r{r}-group-l2-0.5/weights.safetensors")
        pruned = flatten_dict(prune(variables, groups, drawn(run)[f"r{r}-group-l2-0.5"]["kept"]), sep="/")
        assert weights.keys() == pruned.keys()
        for path, values in pruned.items():
            np.testing.assert_array_equal(weights[path], values, strict=True, err_msg=path)


def test_a_second_search_replaces_the_files_of_the_first(searched, tmp_path):
    path = shutil.copytree(searched, tmp_path / "run")
    for file in ("rankings.npz", "distances.csv", "overlaps.npz", "tickets/r4-group-l2-0.5/ticket.json"):
        (path / file).write_text("of the first")
    search(path)
    expected = {file: held and held.replace(bytes(searched), bytes(path)) for file, held in contents(searched).items()}
    found = contents(path)
    # The checksum of distances.csv, which names the run by its path.
    del found[Path("search.json")], expected[Path("search.json")]
    assert found == expected


def test_one_snapshot_is_in_memory_at_a_time(run, monkeypatch):
    read, earlier = snapshots.read_state, []

    def watched(directory, round_number):
        gc.collect()
        held = {r for r, array in earlier if array() is not None}
        assert not held, f"round {round_number} is read while arrays of these rounds are held: {held}"
        tree = read(directory, round_number)
        earlier.extend((round_number, weakref.ref(leaf)) for leaf in jax.tree.leaves(tree))
        return tree

    monkeypatch.setattr(snapshots, "read_state", watched)
    search(run, "--export", "--rounds", *ROUNDS)
    assert {r for r, _ in earlier} == set(ROUNDS)


def test_a_run_of_one_snapshot_is_searched(made, tmp_path):
    path = shutil.copytree(made / "wide", tmp_path / "run")
    search(path, "--ratios", "0.5")
    found = distances(path)[0, "stage1/block1"]
    assert (found["to_reference"], found["to_previous"]) == ("0.0", "")
    assert np.load(path / "overlaps.npz")["0.5/all"].tolist() == [[1.0]]


def test_a_reference_of_another_initialisation_can_be_forced_with_a_warning(run, made, capsys):
    search(run, "--reference", made / "stranger", "--force", "--ratios", "0.5")
    warning = capsys.readouterr().err
    assert f"warning: {made}/stranger started from other parameters than {run} (params/stem/kernel)" in warning
    assert "nothing to do with filter k of the other" in warning
    for group in WIDTHS:
        assert_distances(distances(run)[4, group], "to_reference", ranks_of(3, group, seed=1), ranks_of(4, group))


@pytest.mark.parametrize(
    ("name", "arguments", "fragments"),
    [
        ("run", ["--keep_whole", "stage9"], ["{run}: pattern 'stage9': matches no filter group", "stage1/block1"]),
        ("run", ["--group_ratios", "stage1/*"], ["--group_ratios: stage1/*: must be PATTERN=RATIO; try stage1/*=0.3"]),
        ("run", ["--group_ratios", "stage1/*=2"], ["--group_ratios: 2: must be in [0, 1)"]),
        ("run", ["--at_least", "0"], ["--at_least: 0: must be a whole number of at least 1"]),
        ("run", ["--round_to", "x"], ["--round_to: x: must be a whole number of at least 1"]),
        ("run", ["--norm", "l3"], ["--norm: invalid choice: 'l3'"]),
        *[("run", ["--ratios", r], [f"--ratios: {r}: must be in [0, 1)", "try 0.5"]) for r in ("1", "-0.1", "x")],
        ("run", ["--rounds", "7"], ["--rounds 7: no such snapshot; try 6; there are 0, 4, 6"]),
        ("run", ["--loft.workers", "2"], ["--loft.workers 2", "made with 4"]),
        ("run", ["--ratio", "0.5"], ["unknown option --ratio; did you mean --ratios?"]),
        ("run", ["--reference", "{made}/none"], ["--reference", "/none: holds no snapshots", "loft_jax.train"]),
        *[("run", ["--reference", "{made}/a@b@" + r], [f"round {r}; there are 0, 3, 9"]) for r in ("7", "x")],
        ("run", ["--reference", "{made}/stranger"], ["/stranger", "nothing to do with", "same seed", "--force"]),
        ("run", ["--reference", "{made}/wide", "--force"], ["--reference", "'stage1/block1' has 8", "same model"]),
        ("wider since", [], ["{run}", "round 4", "'stage1/block1' has 4", "use the config"]),
        ("deeper since", [], ["{run}", "round 4", "another model than preresnet20", "use the config"]),
        ("incomplete", [], ["{run}", "round 4", "'batch_stats/", "use the config"]),
        ("nan", [], ["{run}", "round 4", "'stage2/block2'", "filter 3 (nan)", "draw tickets from"]),
        ("inf", [], ["{run}", "round 4", "'stage2/block2'", "filter 3 (inf)", "draw tickets from"]),
        ("empty", [], ["{run}", "holds no snapshots", "loft_jax.train"]),
    ],
)
def test_bad_input_is_refused_by_name_with_the_fix_and_nothing_is_written(name, arguments, fragments, made, tmp_path):
    run = shutil.copytree(made / name, tmp_path / "run")
    message = refusal(search, run, *(text.format(made=made) for text in arguments))
    assert [text for text in fragments if text.format(run=run) not in message] == [], message
    assert contents(run) == contents(made / name)


def test_a_run_that_does_not_exist_is_refused_before_jax_is_imported(tmp_path):
    line = [sys.executable, "-X", "importtime", "-m", "loft_jax.tickets", str(tmp_path / "run")]
    result = subprocess.run(line, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert (result.returncode, "Traceback" in result.stderr) == (2, False)
    assert f"error: {tmp_path}/run: holds no config.yaml; is it a run directory of loft_jax.train?" in result.stderr
    assert imported & {"loft_jax.tickets.ticket", "jax", "flax", "orbax.checkpoint"} == {"loft_jax.tickets.ticket"}
    assert not (tmp_path / "run").exists()
