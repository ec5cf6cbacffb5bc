"""A ticket's network as a program of jax.export: loaded where there is no loft_jax, with logits that are the same."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.runs import config_of, opened
from safetensors.numpy import load_file

from loft_jax import create_model
from loft_jax.filters import unflatten_paths
from loft_jax.storage import Store
from loft_jax.tickets import __main__ as tickets

ELSEWHERE = """
import sys
sys.modules["loft_jax"] = sys.modules["flax"] = None
import numpy as np
from jax import export
from safetensors.numpy import load_file
program = export.deserialize(open("network.jax_export", "rb").read())
weights = load_file("weights.safetensors")
for size in (1, 3):
    np.save(f"logits{size}.npy", program.call(weights, np.load("images.npy")[:size]))
"""


def search(run, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loft_jax.devices.configure_jax", lambda config: None)
        tickets.main([str(run), *arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one snapshot, that says on which images it was trained."""
    directory = opened(tmp_path_factory.mktemp("made") / "run", config_of())
    directory.close()
    model = create_model("preresnet20", 10, width=4)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 1)))
    variables = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes)
    store = Store(directory.snapshots)
    store.save(0, {"variables": variables, "round": np.int32(0)})
    store.close()
    (directory.path / "data.json").write_text(json.dumps({"name": "digits", "image_shape": [8, 8, 1], "classes": 10}))
    return directory.path


def test_a_process_without_loft_jax_gets_the_tickets_logits(run):
    search(run, "--ratios", "0.5", "--export")
    ticket = run / "tickets/r0-group-l2-0.5"
    images = np.random.default_rng(1).normal(size=(3, 8, 8, 1)).astype(np.float32)
    np.save(ticket / "images.npy", images)
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=ticket, check=True)
    kept = json.loads((ticket / "ticket.json").read_text())["kept"]
    model = create_model("preresnet20", 10, width=4).with_widths({name: len(filters) for name, filters in kept.items()})
    variables = unflatten_paths(load_file(ticket / "weights.safetensors"))
    for size in (1, 3):
        logits = np.load(ticket / f"logits{size}.npy")
        assert (logits.shape, logits.dtype) == ((size, 10), np.float32)
        np.testing.assert_allclose(logits, model.apply(variables, images[:size]), rtol=1e-5)


def test_where_the_data_are_not_known_the_weights_alone_are_exported(run, tmp_path, capsys):
    path = shutil.copytree(run, tmp_path / "run")
    (path / "data.json").unlink()
    shutil.rmtree(path / "tickets", ignore_errors=True)
    search(path, "--ratios", "0.5", "--export")
    assert {p.name for p in path.glob("tickets/*/*")} == {"ticket.json", "weights.safetensors"}
    assert "data.json is missing, so no network is exported" in capsys.readouterr().out
