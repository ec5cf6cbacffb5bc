"""Checkpoints of other programs: every format gives the distances of the same weights, and what is refused."""

import csv
import json
import sys
from functools import cache

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.serialization import msgpack_serialize
from helpers.settings_helpers import refusal
from safetensors.numpy import save_file

from loft_jax import FilterGroup, create_model, filter_scores, footrule, normalised_footrule, rank_filters
from loft_jax.distances import __main__ as distances, layers
from loft_jax.distances.checkpoints import short_names
from loft_jax.filters import Rules, draw_kept, flatten_paths, unflatten_paths

STEPS = ("early", "middle", "late")


@cache
def snapshots():
    """Variables of a small ResNet at three moments, by path."""
    shapes = jax.eval_shape(create_model("preresnet20", 10, width=4).init, jax.random.key(0), np.zeros((1, 8, 8, 1)))
    rng, made = np.random.default_rng(0), []
    values = {path: rng.normal(size=leaf.shape) for path, leaf in flatten_paths(shapes).items()}
    for _ in STEPS:
        values = {path: value + 0.3 * rng.normal(size=value.shape) for path, value in values.items()}
        made.append({path: value.astype(np.float32) for path, value in values.items()})
    return made


def kernels(variables):
    return {path: array for path, array in variables.items() if path.endswith("/kernel")}


def as_torch(variables):
    """The same network with the names and axes of PyTorch."""
    named = {}
    for path, array in variables.items():
        name = path.removeprefix("params/").replace("/", ".")
        if path.endswith("/kernel"):
            axes = (3, 2, 0, 1) if array.ndim == 4 else (1, 0)
            named[name.replace(".kernel", ".weight")] = np.ascontiguousarray(array.transpose(axes))
        else:
            named[name.replace(".scale", ".weight").replace("batch_stats.", "")] = array
    return named


def save_orbax(path, variables):
    with ocp.StandardCheckpointer() as saver:
        saver.save(
            path, {"params": unflatten_paths(variables)["params"], "opt_state": {"mu": unflatten_paths(variables)}}
        )


WRITERS = {
    "flax.safetensors": lambda path, variables: save_file(variables, path),
    "torch.safetensors": lambda path, variables: save_file(as_torch(variables), path),
    "flax.npz": lambda path, variables: np.savez(path, **variables),
    "torch.npz": lambda path, variables: np.savez(path, **as_torch(variables)),
    "flax.msgpack": lambda path, variables: path.write_bytes(msgpack_serialize(unflatten_paths(variables))),
    "orbax": save_orbax,
}


def written(directory, kind, variables=None):
    paths = []
    for step, of_step in zip(STEPS, variables or snapshots(), strict=False):
        paths.append(directory / f"{step}.{kind}" if kind == "orbax" else directory / f"{step}.{kind.split('.')[1]}")
        WRITERS[kind](paths[-1], of_step)
    return paths


def compare(*arguments):
    """Run the command in this process, whose devices are set already."""
    distances.main(list(map(str, arguments)))


def rows_of(out):
    rows = csv.DictReader((out / "distances.csv").read_text().splitlines())
    return {(int(row["round"]), row["group"]): row for row in rows}


def own_ranks():
    """Rankings of every layer by the package's own functions on the same kernels: layer -> three rankings."""
    groups = [
        FilterGroup(path.removeprefix("params/").removesuffix("/kernel"), a.shape[-1], {path: a.ndim - 1}, False)
        for path, a in kernels(snapshots()[0]).items()
    ]
    scores = [filter_scores(unflatten_paths(variables), groups) for variables in snapshots()]
    return {group.name: [np.asarray(rank_filters(of_step[group.name])) for of_step in scores] for group in groups}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_distances_of_the_same_weights(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "_MOST_UNMATCHED", 20)
    monkeypatch.setattr("loft_jax.distances.results.figures_of", lambda *arguments: iter(()))
    compare(*written(tmp_path, kind), "--out", tmp_path / "out")
    check_results(tmp_path / "out")


def check_results(out):
    found, rows, expected = np.load(out / "rankings.npz"), rows_of(out), own_ranks()
    assert set(found) == {*expected, "rounds"}
    assert found["rounds"].tolist() == [0, 1, 2]
    for layer, ranks in expected.items():
        np.testing.assert_array_equal(found[layer], ranks, err_msg=layer)
        for t in range(3):
            row = rows[t, layer]
            facts = [row[column] for column in ("epoch", "train_loss", "test_accuracy")]
            assert facts == ["", "", ""]
            to_reference = [float(row["to_reference"]), float(row["to_reference_normalised"])]
            wanted = [footrule(ranks[2], ranks[t]), normalised_footrule(ranks[2], ranks[t])]
            np.testing.assert_allclose(to_reference, wanted, rtol=1e-5)
            if t:
                np.testing.assert_allclose(float(row["to_previous"]), footrule(ranks[t - 1], ranks[t]), rtol=1e-5)
            else:
                assert row["to_previous"] == ""


def test_pytorch_files_give_the_same_and_are_read_as_weights_only(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="files of PyTorch need torch")
    monkeypatch.setattr("loft_jax.distances.results.figures_of", lambda *arguments: iter(()))
    paths = [tmp_path / f"{step}.pt" for step in STEPS]
    for path, variables in zip(paths, snapshots(), strict=True):
        state = {f"module.{name}": torch.tensor(array) for name, array in as_torch(variables).items()}
        torch.save({"state_dict": state, "epoch": 3}, path)
    compare(*paths, "--out", tmp_path / "out")
    check_results(tmp_path / "out")
    (tmp_path / "spoilt.pth").write_bytes(b"no archive")
    torch.save({"model": FilterGroup("a", 1, {}, False)}, tmp_path / "object.pt")
    for name in ("spoilt.pth", "object.pt"):
        assert "torch cannot read it with weights_only=True" in refusal(
            compare, tmp_path / name, "--out", tmp_path / "o"
        )


def test_snapshots_of_a_resnet_of_pytorch_have_the_distances_of_the_same_weights_here(tmp_path, monkeypatch):
    """Of a network that PyTorch trains, saved as its users do: against functions on its kernels."""
    torch = pytest.importorskip("torch", reason="files of PyTorch need torch")
    monkeypatch.setattr("loft_jax.distances.results.figures_of", lambda *arguments: iter(()))
    network, nn = _torch_resnet(torch), torch.nn
    descent = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    paths, states = [tmp_path / f"{step}.pt" for step in STEPS], []
    for path in paths:
        torch.save({"state_dict": network.state_dict(), "optimizer": descent.state_dict()}, path)
        states.append({name: tensor.numpy().copy() for name, tensor in network.state_dict().items()})
        descent.zero_grad()
        nn.functional.cross_entropy(network(torch.randn(8, 3, 8, 8)), torch.arange(8)).backward()
        descent.step()
    compare(*paths, "--out", tmp_path / "out")
    layers_there = [name.removesuffix(".weight") for name, array in states[0].items() if array.ndim > 1]
    found, rows = np.load(tmp_path / "out/rankings.npz"), rows_of(tmp_path / "out")
    assert len(layers_there) == 7
    assert set(found) == {*(name.replace(".", "/") for name in layers_there), "rounds"}
    for name in layers_there:
        kernels_here = [
            state[f"{name}.weight"].transpose(*range(2, state[f"{name}.weight"].ndim), 1, 0) for state in states
        ]
        path, kernel = "params/layer/kernel", kernels_here[0]
        group = FilterGroup(name, kernel.shape[-1], {path: kernel.ndim - 1}, partitioned=True)
        scores = [filter_scores({"params": {"layer": {"kernel": one}}}, [group])[name] for one in kernels_here]
        ranks = [np.asarray(rank_filters(values)) for values in scores]
        np.testing.assert_array_equal(found[name.replace(".", "/")], ranks)
        for t, of_step in enumerate(ranks):
            distance = float(rows[t, name.replace(".", "/")]["to_reference"])
            np.testing.assert_allclose(distance, footrule(ranks[-1], of_step), rtol=1e-5)


def _torch_resnet(torch):
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inside, outside, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
            self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
            self.downsample = nn.Conv2d(inside, outside, 1, stride, bias=False) if stride > 1 else nn.Identity()

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (y + self.downsample(x)).relu()

    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
    parts = [stem, nn.BatchNorm2d(8), nn.ReLU(), Block(8, 8, 1), Block(8, 16, 2)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))


def test_a_pytorch_file_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "net.pt").write_bytes(b"")
    said = refusal(compare, tmp_path / "net.pt", "--out", tmp_path / "out")
    assert "net.pt: is a PyTorch file, and torch is not installed; pip install torch" in said


def test_the_page_shows_maps_and_curves_and_what_was_left_out(tmp_path, capsys):
    wide = [kernels(variables) for variables in snapshots()]
    few = [dict(list(variables.items())[:3]) for variables in wide]
    few[1]["params/extra/kernel"] = np.ones((2, 2), np.float32)
    out = tmp_path / "out"
    compare(*written(tmp_path, "flax.npz", few), "--out", out, "--ratios", "0.5", "--round_to", "2")
    figures = {path.name for path in (out / "figures").glob("*.svg")}
    assert figures == {f"{name}.svg" for name in ("scores", "distances", "overlap", "to_reference", "maps", "kept")}
    page = (out / "report.html").read_text()
    for text in ("3 checkpoints, from early to late", "extra: not in early, late", "distance from the reference"):
        assert text in page, text
    assert "left out  extra: not in early, late" in capsys.readouterr().out
    tickets = {path.name for path in (out / "tickets").iterdir()}
    assert tickets == {f"r{t}-group-l2-0.5-by2" for t in range(3)}
    name = next(iter(few[0])).removeprefix("params/").removesuffix("/kernel")
    kept = json.loads((out / "tickets/r2-group-l2-0.5-by2/ticket.json").read_text())["kept"][name]
    kernel = few[2][f"params/{name}/kernel"]
    norms = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
    assert kept == draw_kept({name: norms}, 0.5, "group", Rules(round_to=2))[name]


def test_one_checkpoint_has_rankings_and_tickets_and_no_distances(tmp_path):
    out = tmp_path / "out"
    compare(written(tmp_path, "torch.npz")[0], "--out", out, "--ratios", "0.5")
    assert np.load(out / "rankings.npz")["stem"].shape == (1, 4)
    assert {row["to_reference"] for row in rows_of(out).values()} == {""}
    assert {path.name for path in (out / "tickets").iterdir()} == {"r0-group-l2-0.5"}
    assert {path.name for path in (out / "figures").glob("*.png")} == {"scores.png"}


def test_a_reference_may_be_any_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("loft_jax.distances.results.figures_of", lambda *arguments: iter(()))
    paths = written(tmp_path, "flax.npz")
    compare(*paths, "--out", tmp_path / "out", "--reference", paths[0])
    ranks, rows = own_ranks(), rows_of(tmp_path / "out")
    wanted = footrule(ranks["stem"][0], ranks["stem"][2])
    np.testing.assert_allclose(float(rows[2, "stem"]["to_reference"]), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "layout", "axis"),
    [
        ({"a/weight": (8, 4, 3, 3)}, "torch", 0),
        ({"a/kernel": (3, 3, 4, 8)}, "flax", 3),
        # The shape counts, and not the name.
        ({"a/weight": (3, 3, 4, 8)}, "flax", 3),
        ({"a/kernel": (64, 3, 7, 7)}, "torch", 0),
        # Where the window could be at either end, the name.
        ({"a/weight": (3, 3, 3, 3)}, "torch", 0),
        ({"a/kernel": (192, 192, 1, 7)}, "flax", 3),
        ({"a/weight": (10, 5)}, "torch", 0),
        ({"a/kernel": (10, 5)}, "flax", 1),
        # A depthwise convolution has one input channel.
        ({"a/weight": (32, 1, 3, 3)}, "torch", 0),
        ({"a/kernel": (3, 3, 1, 32)}, "flax", 3),
    ],
)
def test_the_layout_is_told_by_shape_and_else_by_name(shapes, layout, axis):
    found_layout, (layer,) = layers.find_layers({path: np.zeros(s) for path, s in shapes.items()}, "x")
    assert (found_layout, layer.axis, layer.name) == (layout, axis, "a")


def test_an_option_says_the_layout_also_of_other_names():
    arrays = {"dense_0": np.zeros((3, 5)), "bias": np.zeros(5)}
    assert layers.find_layers(arrays, "x", "torch")[1][0].group.width == 3
    assert layers.find_layers(arrays, "x", "flax")[1][0].group.width == 5


def test_what_training_keeps_and_embeddings_are_no_layers():
    paths = ("params/a/kernel", "opt_state/0/mu/b/kernel", "training/momentum/c/kernel", "params/embed/kernel")
    _, found = layers.find_layers({path: np.zeros((2, 3)) for path in paths}, "x")
    assert [layer.name for layer in found] == ["a"]


def test_short_names_distinguish(tmp_path):
    paths = [tmp_path / "a/net.npz", tmp_path / "b/net.npz"]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    assert short_names(paths) == ["a/net", "b/net"]
    assert short_names(paths[:1]) == ["net"]


BAD = {
    "none.npz": None,
    "net.h5": b"x",
    "cut.safetensors": b"\xff\xff\0\0\0\0\0\0{}",
    "short.safetensors": b"abc",
    "cut.npz": b"PK\x03\x04",
    "cut.msgpack": b"\xc1",
    "empty.msgpack": msgpack_serialize({}),
    "others.msgpack": msgpack_serialize({"a": {"b": np.zeros((2, 2))}}),
    "both.msgpack": msgpack_serialize(
        {"a": {"weight": np.zeros((8, 4, 3, 3))}, "b": {"weight": np.zeros((3, 3, 4, 8))}}
    ),
    "nan.msgpack": msgpack_serialize({"stem": {"kernel": np.full((2, 2), np.nan)}}),
}


@pytest.mark.parametrize(
    ("name", "arguments", "fragments"),
    [
        ("none.npz", [], ["none.npz: no such file"]),
        (
            "net.h5",
            [],
            ["net.h5: format .h5 is not known; give .safetensors, .npz, .msgpack, .pt, .pth or a directory"],
        ),
        ("cut.safetensors", [], ["its header is longer than the file"]),
        ("short.safetensors", [], ["is cut off: it has no header"]),
        ("cut.npz", [], ["cut.npz: is damaged"]),
        ("cut.msgpack", [], ["cut.msgpack: cannot be read as .msgpack"]),
        ("empty.msgpack", [], ["holds no arrays; give a file of weights"]),
        ("others.msgpack", [], ["no array is named as a kernel", "it has a/b", "--layout torch"]),
        ("both.msgpack", [], ["a/weight (8, 4, 3, 3) looks like", "b/weight (3, 3, 4, 8)", "--layout"]),
        ("nan.msgpack", [], ["nan.msgpack: filter group 'stem'", "not finite"]),
        (".", [], ["is a directory, and not one that Orbax has written"]),
        ("early.npz", ["{here}/early.npz"], ["early.npz: is the same as"]),
        ("early.npz", ["--reference", "late.npz"], ["--reference late.npz: is not one of the checkpoints"]),
        ("early.npz", ["--norm", "bn_scale"], ["--norm bn_scale", "use one of l2, l1, fpgm"]),
        ("early.npz", ["--ratios", "1"], ["--ratios: 1: must be in [0, 1)"]),
        ("early.npz", ["--keep_whole", "stage9/*"], ["pattern 'stage9/*': matches no filter group; there are head"]),
        ("early.npz", ["--group_ratios", "stem"], ["--group_ratios: stem: must be PATTERN=RATIO"]),
        ("early.npz", ["--out", "{here}/run"], ["/run: holds a run"]),
        (
            "early.npz",
            ["{here}/foreign.npz"],
            ["no layer is in all 2 checkpoints", "head: differs in shape", "one network"],
        ),
        ("early.npz", ["{here}/renamed.npz"], ["no layer is in all 2 checkpoints", "not in renamed"]),
    ],
)
def test_bad_input_is_refused_by_name_with_the_fix_and_nothing_is_written(name, arguments, fragments, tmp_path):
    early = kernels(snapshots()[0])
    np.savez(tmp_path / "early.npz", **early)
    np.savez(tmp_path / "foreign.npz", **{path: np.concatenate([a, a], -1) for path, a in early.items()})
    np.savez(tmp_path / "renamed.npz", **{f"layer{i}/kernel": a for i, a in enumerate(early.values())})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    if content := BAD.get(name):
        (tmp_path / name).write_bytes(content)
    out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
    message = refusal(compare, tmp_path / name, *(text.format(here=tmp_path) for text in arguments), *out)
    assert [text for text in fragments if text not in message] == [], message
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_half_of_the_layers_is_said_and_the_others_are_compared(tmp_path, capsys):
    early, late = (kernels(snapshots()[i]) for i in (0, 2))
    half = dict(list(late.items())[: len(late) // 2])
    compare(*written(tmp_path, "flax.npz", [early, half]), "--out", tmp_path / "out", "--ratios", "0.5")
    assert len(np.load(tmp_path / "out/rankings.npz").files) == len(half) + 1
    assert capsys.readouterr().out.count("not in middle") == len(early) - len(half)
