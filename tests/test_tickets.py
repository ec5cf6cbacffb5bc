"""The tickets command: what it finds in runs made by hand, what it writes, and how it says no."""

import contextlib
import copy
import csv
import gc
import io
import json
import math
import shutil
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from runs import config_of, opened
from safetensors.numpy import load_file
from settings_helpers import refusal

from loft_jax import create_model, prune, snapshots, tickets
from loft_jax.checkpoint import Store

WIDTHS = {f"stage{s}/block{b}": 2 * 2**s for s in (1, 2, 3) for b in (1, 2, 3)}
ROUNDS, RATIOS = [0, 4, 6], ["0.8", "0.5", "0.3"]
# Round 0 comes before any loss; round 4 was not evaluated; of round 6 there is no row.
ROWS = [
    {"round": 0, "epoch": 0.0, "test/accuracy": 0.125},
    {"round": 3, "epoch": 0.5, "train/loss": 9.0, "test/accuracy": 0.9},
    {"round": 4, "epoch": 0.75, "train/loss": 2.5},
]
COLUMNS = "run group round epoch to_reference to_reference_normalised to_previous to_previous_normalised train_loss"


def ranks_of(round_number, group, seed=0):
    """The ranking at a round: literal in the first group; in the others the first half of the filters stays on top."""
    if group == "stage1/block1":
        return np.array({0: [1, 2, 3, 4], 4: [3, 1, 2, 4], 6: [3, 4, 1, 2]}.get(round_number, [4, 3, 2, 1]))
    rng = np.random.default_rng([seed if round_number else 0, round_number, *map(ord, group)])
    half = WIDTHS[group] // 2
    return np.concatenate([rng.permutation(half) + 1, rng.permutation(half) + half + 1])


def kernel_of(ranks, shape):
    """A kernel whose filters rank so by l2 and the other way round by l1: a worse one spreads its norm over more."""
    kernel = np.zeros((math.prod(shape[:-1]), len(ranks)), np.float32)
    for index, rank in enumerate(ranks):
        kernel[:rank, index] = (2 - rank / 100) / math.sqrt(rank)
    return kernel.reshape(shape)


def conv1(variables, group):
    return variables["params"][group.replace("/", "_")]["conv1"]


@pytest.fixture(scope="module")
def states():
    """Variables at rounds, whose rankings are those of `ranks_of`; any seed gives the same round 0."""
    init = create_model("preresnet20", 10, width=4).init
    unoptimised = jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})
    start = jax.device_get(unoptimised(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))

    def make(rounds=ROUNDS, seed=0):
        made = {round_number: copy.deepcopy(start) for round_number in rounds}
        for round_number, variables in made.items():
            for group in WIDTHS:
                shape = conv1(variables, group)["kernel"].shape
                conv1(variables, group)["kernel"] = kernel_of(ranks_of(round_number, group, seed), shape)
        return made

    return make


def variables_of(name, width):
    shapes = jax.eval_shape(create_model(name, 10, width=width).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)


def make_run(path, states, **changes):
    directory = opened(path, config_of(**changes))
    for row in ROWS:
        directory.append(row)
    store = Store(directory.snapshots)
    for round_number, variables in states.items():
        store.save(round_number, {"variables": variables, "round": np.int32(round_number)})
    store.wait()
    store.close()
    # As a process leaves it that dies while it saves.
    (directory.snapshots / "8.orbax-checkpoint-tmp").mkdir()
    return path


def search(*arguments):
    """Run the command in this process, whose devices are set already; returns (stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr("loft_jax.experiment.configure_jax", lambda config: None)
        patch.setattr(sys, "argv", ["tickets", *map(str, arguments)])
        tickets.main()
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def made(states, tmp_path_factory):
    """To be read only: a run, and one of the same initialisation that went elsewhere."""
    path = tmp_path_factory.mktemp("made")
    make_run(path / "run", states())
    make_run(path / "other@home", states([0, 3, 9], seed=1))
    return path


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made / "run", tmp_path / "run")


@pytest.fixture(scope="module")
def searched(made, tmp_path_factory):
    """To be read only: a run searched with the defaults, and what was printed."""
    path = shutil.copytree(made / "run", tmp_path_factory.mktemp("searched") / "run")
    return path, search(path)[0]


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def distances(path):
    with open(path / "distances.csv", newline="") as file:
        return {(int(row["round"]), row["group"]): row for row in csv.DictReader(file)}


def ticket(path, name):
    return json.loads((path / "tickets" / name / "ticket.json").read_text())


def names(path, file="ticket.json"):
    return {found.parent.name for found in (path / "tickets").glob(f"*/{file}")}


def contents(path):
    return {p.relative_to(path): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


def assert_distances(row, column, reference, other):
    """Sum over the reference's positions i of 1/i |ln i - ln sigma(i)|, and that over its mean by chance."""
    n, total = len(reference), 0.0
    for i in range(1, n + 1):
        for index in range(n):
            if reference[index] == i:
                total += abs(math.log(i) - math.log(other[index])) / i
    chance = sum(abs(math.log(i) - math.log(j)) / i for i in range(1, n + 1) for j in range(1, n + 1)) / n
    found = [float(row[column]), float(row[f"{column}_normalised"])]
    np.testing.assert_allclose(found, [total, total / chance], rtol=1e-5, atol=0)


@pytest.mark.compat
def test_the_rankings_are_those_of_the_conv1_norms(searched, states):
    found = arrays(searched[0] / "rankings.npz")
    assert set(found) == {*WIDTHS, "rounds"}
    assert found["rounds"].tolist() == ROUNDS
    for group, n in WIDTHS.items():
        kernels = [conv1(v, group)["kernel"].astype(np.float64) for v in states().values()]
        order = [np.argsort(-np.sqrt((kernel**2).sum(axis=(0, 1, 2)))) for kernel in kernels]
        assert (found[group].dtype, found[group].shape) == (np.int32, (3, n))
        np.testing.assert_array_equal(found[group], np.argsort(order) + 1, err_msg=group)
    assert found["stage1/block1"].tolist() == [[1, 2, 3, 4], [3, 1, 2, 4], [3, 4, 1, 2]]


def test_the_distances_are_the_papers_formula_on_every_group_and_snapshot(searched):
    path, rows = searched[0], distances(searched[0])
    assert (path / "distances.csv").read_text().split("\n")[0].split(",") == [*COLUMNS.split(), "test_accuracy"]
    assert list(rows) == [(r, group) for r in ROUNDS for group in WIDTHS]
    for (round_number, group), row in rows.items():
        ranks = {r: ranks_of(r, group) for r in ROUNDS}
        assert row["run"] == str(path)
        assert_distances(row, "to_reference", ranks[6], ranks[round_number])
        if round_number:
            assert_distances(row, "to_previous", ranks[{4: 0, 6: 4}[round_number]], ranks[round_number])
        else:
            assert row["to_previous"] == row["to_previous_normalised"] == ""
    assert {float(rows[6, group]["to_reference"]) for group in WIDTHS} == {0.0}
    facts = {r: [rows[r, "stage2/block2"][key] for key in ("epoch", "train_loss", "test_accuracy")] for r in ROUNDS}
    assert facts == {0: ["0.0", "", "0.125"], 4: ["0.75", "2.5", ""], 6: ["", "", ""]}


def test_every_snapshot_has_a_ticket_at_every_ratio(searched):
    assert names(searched[0]) == {f"r{r}-group-l2-{ratio}" for r in ROUNDS for ratio in RATIOS}
    sizes = {"0.8": {4: 1, 8: 2, 16: 4}, "0.5": {4: 2, 8: 4, 16: 8}, "0.3": {4: 3, 8: 6, 16: 12}}
    for r, ratio in ((r, ratio) for r in ROUNDS for ratio in RATIOS):
        assert ticket(searched[0], f"r{r}-group-l2-{ratio}") == {
            "kept": {g: np.flatnonzero(ranks_of(r, g) <= sizes[ratio][n]).tolist() for g, n in WIDTHS.items()},
            **{"ratio": float(ratio), "scope": "group", "norm": "l2", "round": r},
            **{"run": str(searched[0]), "config_hash": config_of().hash()},
        }


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        (["--ratios", "0", "0.99"], {"r6-group-l2-0": (4, 8, 16), "r6-group-l2-0.99": (1, 1, 1)}),
        (["--ratios", "0.75", "--norm", "l1"], {"r6-group-l1-0.75": (1, 2, 4)}),
        # Of 84 filters 21 stay: the best of each group, then the widest's, whose best lie farthest above the mean.
        (["--ratios", "0.75", "--scope", "global"], {"r6-global-l2-0.75": (1, 1, 5)}),
    ],
)
def test_ratio_scope_and_norm_decide_what_is_kept_and_rounds_which_tickets_are_written(arguments, sizes, run):
    search(run, *arguments, "--rounds", "6")
    assert names(run) == set(sizes)
    for name, of_stage in sizes.items():
        found = ticket(run, name)
        assert name == f"r6-{found['scope']}-{found['norm']}-{found['ratio']:g}"
        for group, n in WIDTHS.items():
            ranks = n + 1 - ranks_of(6, group) if found["norm"] == "l1" else ranks_of(6, group)
            assert found["kept"][group] == np.flatnonzero(ranks <= of_stage[int(group[5]) - 1]).tolist(), group
    assert arrays(run / "rankings.npz")["rounds"].tolist() == ROUNDS, "all but the tickets is of all snapshots"


def test_the_overlaps_are_intersection_over_union_of_the_kept_filters(searched):
    found, groups = arrays(searched[0] / "overlaps.npz"), [*WIDTHS, "all"]
    assert set(found) == {"rounds", *(f"{ratio}/{group}" for ratio in RATIOS for group in groups)}
    for ratio in RATIOS:
        kept = [ticket(searched[0], f"r{r}-group-l2-{ratio}")["kept"] for r in ROUNDS]
        for group in groups:
            sets = [{(g, i) for g in k for i in k[g] if group in (g, "all")} for k in kept]
            expected = [[len(one & other) / len(one | other) for other in sets] for one in sets]
            np.testing.assert_allclose(found[f"{ratio}/{group}"], expected, rtol=1e-6)
    # By hand: the first group keeps 0 1, then 1 2, then 2 3; the others their first halves, 40 filters.
    np.testing.assert_allclose(found["0.5/stage1/block1"], [[1, 1 / 3, 0], [1 / 3, 1, 1 / 3], [0, 1 / 3, 1]], rtol=1e-6)
    by_hand = [[1, 41 / 43, 40 / 44], [41 / 43, 1, 41 / 43], [40 / 44, 41 / 43, 1]]
    np.testing.assert_allclose(found["0.5/all"], by_hand, rtol=1e-6)


def test_what_is_printed_has_the_initialisation_and_chance_as_baseline(searched):
    start = [float(distances(searched[0])[0, group]["to_reference_normalised"]) for group in WIDTHS]
    (line,) = [line for line in searched[1].splitlines() if line.startswith("baseline")]
    assert f"{np.mean(start):.3f} ({max(start):.3f})" in line
    assert "1.000: chance" in line


@pytest.mark.parametrize(("suffix", "reference_round"), [("", 9), ("@3", 3)])
def test_a_run_of_the_same_initialisation_can_be_the_reference(suffix, reference_round, made, run):
    before = contents(made / "other@home")
    _, warning = search(run, "--reference", f"{made / 'other@home'}{suffix}", "--ratios", "0.5")
    assert (warning, contents(made / "other@home")) == ("", before)
    for (at, group), row in distances(run).items():
        assert_distances(row, "to_reference", ranks_of(reference_round, group, seed=1), ranks_of(at, group))


def test_exported_weights_are_the_pruned_network_of_the_last_snapshot_or_the_named_ones(run, states):
    groups = create_model("preresnet20", 10, width=4).filter_groups()
    for arguments, rounds in (["--ratios", "0.5"], [6]), (["--ratios", "0.3", "--rounds", "0", "4"], [0, 4]):
        search(run, "--export", *arguments)
        expected = [f"r{r}-group-l2-{arguments[1]}" for r in rounds]
        assert names(run, "weights.safetensors") - {"r6-group-l2-0.5"} == set(expected) - {"r6-group-l2-0.5"}
        for name in expected:
            found, weights = ticket(run, name), load_file(run / "tickets" / name / "weights.safetensors")
            pruned = flatten_dict(prune(states()[found["round"]], groups, found["kept"]), sep="/")
            assert weights.keys() == pruned.keys()
            for path, values in pruned.items():
                assert (weights[path].dtype, weights[path].shape) == (values.dtype, values.shape), path
                assert weights[path].tobytes() == np.asarray(values).tobytes(), path


def test_a_second_search_replaces_the_files_of_the_first(searched, tmp_path):
    path = shutil.copytree(searched[0], tmp_path / "run")
    for file in ("rankings.npz", "distances.csv", "overlaps.npz", "tickets/r4-group-l2-0.5/ticket.json"):
        (path / file).write_text("of the first")
    search(path, "--ratios", "0.5")
    np.testing.assert_equal(arrays(path / "rankings.npz"), arrays(searched[0] / "rankings.npz"))
    assert distances(path).keys() == distances(searched[0]).keys()
    assert set(arrays(path / "overlaps.npz")) == {"rounds", "0.5/all", *(f"0.5/{group}" for group in WIDTHS)}
    assert ticket(path, "r4-group-l2-0.5") == {**ticket(searched[0], "r4-group-l2-0.5"), "run": str(path)}
    assert not list(path.rglob("*.tmp"))


def test_one_snapshot_is_in_memory_at_a_time(run, monkeypatch):
    read, earlier = snapshots.read_state, []

    def watched(directory, round_number):
        gc.collect()
        held = {at for at, array in earlier if array() is not None}
        assert not held, f"round {round_number} is read while arrays of these rounds are held: {held}"
        tree = read(directory, round_number)
        earlier.extend((round_number, weakref.ref(leaf)) for leaf in jax.tree.leaves(tree))
        return tree

    monkeypatch.setattr(snapshots, "read_state", watched)
    search(run, "--export", "--rounds", *ROUNDS)
    assert {at for at, _ in earlier} == set(ROUNDS)


def test_a_run_of_one_snapshot_is_searched(states, tmp_path):
    path = make_run(tmp_path / "run", states([0]))
    search(path, "--ratios", "0.5")
    row = distances(path)[0, "stage1/block1"]
    assert [row[key] for key in ("to_reference", "to_reference_normalised", "to_previous")] == ["0.0", "0.0", ""]
    assert arrays(path / "overlaps.npz")["0.5/all"].tolist() == [[1.0]]


def assert_refused(fragments, run, *arguments):
    """With a message that names the thing and the fix, and nothing written."""
    before = contents(run)
    message = refusal(search, run, *arguments)
    for fragment in fragments:
        assert fragment in message
    assert contents(run) == before


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        *[(["--ratios", r], ["--ratios", f"{r}: must be in [0, 1)", "try 0.5"]) for r in ("1", "-0.1", "x", "nan")],
        (["--rounds", "7"], ["--rounds 7: no such snapshot; there are 0, 4, 6"]),
        (["--loft.workers", "2"], ["--loft.workers 2", "made with 4"]),
        (["--ratio", "0.5"], ["unknown option --ratio; did you mean --ratios?"]),
        (["--scope", "layer"], ["--scope", "'layer'", "global"]),
        (["--reference", "{made}/none"], ["--reference", "/none: holds no snapshots", "loft_jax.train"]),
        (["--reference", "{made}/other@home@7"], ["no snapshot of round 7; there are 0, 3, 9"]),
        (["--reference", "{made}/other@home@x"], ["no snapshot of round x; there are 0, 3, 9"]),
    ],
)
def test_options_that_cannot_be_followed_are_refused(arguments, fragments, run, made):
    assert_refused(fragments, run, *(text.format(made=made) for text in arguments))


def test_settings_that_leave_the_result_as_it_is_may_be_overridden(run, tmp_path):
    search(run, "--data.data_dir", tmp_path, "--ratios", "0.5", "--rounds", "6")
    assert ticket(run, "r6-group-l2-0.5")["config_hash"] == config_of().hash()


def spoilt(variables, value):
    conv1(variables, "stage2/block2")["kernel"][1, 1, 0, 3] = value
    return variables


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (lambda v: spoilt(v, np.nan), ["round 4", "'stage2/block2'", "filter 3 (nan)", "draw tickets from"]),
        (lambda v: spoilt(v, -np.inf), ["round 4", "'stage2/block2'", "filter 3 (inf)", "draw tickets from"]),
        (lambda v: variables_of("preresnet20", 8), ["round 4", "'stage1/block1' has 4", "use the config"]),
        (lambda v: variables_of("preresnet18", 4), ["round 4", "another model than preresnet20", "use the config"]),
        (lambda v: {"params": v["params"]}, ["round 4", "another model", "batch_stats/", "use the config"]),
    ],
)
def test_a_snapshot_that_is_not_the_models_or_not_finite_is_refused(change, fragments, states, tmp_path):
    made = states()
    made[4] = change(made[4])
    assert_refused([str(tmp_path / "run"), *fragments], make_run(tmp_path / "run", made))


def test_a_reference_of_another_initialisation_is_refused_unless_forced(run, states, tmp_path):
    different = states([0, 3], seed=1)
    different[0]["params"]["stem"]["kernel"] += 0.01
    reference = make_run(tmp_path / "other", different)
    reasons = [str(reference), "stem/kernel", "nothing to do with", "chance"]
    assert_refused(["--reference", *reasons, "same seed", "--force"], run, "--reference", reference)
    _, warning = search(run, "--reference", reference, "--force", "--ratios", "0.5")
    assert all(fragment in warning for fragment in ["warning: ", *reasons])
    for group in WIDTHS:
        assert_distances(distances(run)[4, group], "to_reference", ranks_of(3, group, seed=1), ranks_of(4, group))


def test_a_reference_of_other_widths_is_refused_even_if_forced(run, tmp_path):
    wider = make_run(tmp_path / "wider", {0: variables_of("preresnet20", 8)}, model={"width": 8})
    for force in [], ["--force"]:
        fragments = [f"--reference {wider}: filter group 'stage1/block1' has 8 filters there and 4", "same model"]
        assert_refused(fragments, run, "--reference", wider, *force)


def test_a_run_without_snapshots_is_refused(tmp_path):
    opened(tmp_path / "run", config_of())
    assert_refused([str(tmp_path / "run"), "holds no snapshots", "loft_jax.train"], tmp_path / "run")


def command(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)


def test_a_run_that_does_not_exist_is_refused_before_jax_is_imported(tmp_path):
    result = command("-X", "importtime", "-m", "loft_jax.tickets", tmp_path / "run")
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert result.returncode == 2
    assert f"error: {tmp_path / 'run'}: holds no config.yaml; is it a run directory of loft_jax.train?" in result.stderr
    assert "Traceback" not in result.stderr
    assert "loft_jax.ticket" in imported
    assert not {"jax", "flax", "orbax.checkpoint"} & imported
    assert not (tmp_path / "run").exists()


def test_the_command_searches_and_says_where_the_tickets_are(run):
    result = command("-m", "loft_jax.tickets", run, "--ratios", "0.5")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"tickets   {run / 'tickets'}: one for each ratio and each of 3 snapshots" in result.stdout
    assert names(run) == {f"r{r}-group-l2-0.5" for r in ROUNDS}
