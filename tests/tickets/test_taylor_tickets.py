"""Tickets by the score to first order: drawn by the commands, on a run's own training batches."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import TESTS
from helpers.runs import config_of, opened

from loft_jax import load_checkpoint, search_tickets
from loft_jax.config import Parser
from loft_jax.data.batches import normalise
from loft_jax.data.load import load_dataset
from loft_jax.errors import UserError
from loft_jax.filters.selection import draw_kept
from loft_jax.loft.orders import norm_order
from loft_jax.models.registry import make_model
from loft_jax.report.run_files import SearchFiles
from loft_jax.retrain.__main__ import add_options, draw_missing
from loft_jax.retrain.job import Job
from loft_jax.retrain.retraining import Retraining
from loft_jax.storage.data_file import write_data
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.tickets.ticket import load_ticket
from loft_jax.train.__main__ import run

pytestmark = pytest.mark.full

CONFIG = config_of(model={"name": f"{TESTS}/helpers/own_networks.py:Plain", "width": None})
READERS = {"Dense_0": "Dense_2", "Dense_2": "Dense_1"}
OPTIONS = {"norm": "taylor", "score_batches": 2, "ratios": [0.5]}
NAME = "r{}-group-taylor-0.5-on2"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    run(CONFIG, opened(path, CONFIG))
    search_tickets(path, **OPTIONS)
    return path


@pytest.fixture
def directory(trained, tmp_path):
    return RunDirectory(shutil.copytree(trained, tmp_path / "run"))


def scores_by_hand(round_number, path, count):
    """Mean over batches of |sum of weight x gradient of the filter's row in the next kernel|."""
    variables, data = load_checkpoint(path, round_number)["variables"], load_dataset(CONFIG)
    model = make_model(CONFIG, 10, (8, 8, 1))

    def loss_of(params, images, labels):
        logits = model.apply({"params": params, "batch_stats": {}}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    found = dict.fromkeys(READERS, 0)
    for batch in norm_order(CONFIG, len(data.train_labels))[:count]:
        images = normalise(jnp.asarray(data.train_images[batch]), *data.channel_statistics)
        gradients = jax.grad(loss_of)(variables["params"], images, data.train_labels[batch])
        for group, reader in READERS.items():
            product = variables["params"][reader]["kernel"] * gradients[reader]["kernel"]
            found[group] += np.abs(product.sum(axis=1)) / count
    return found


def test_a_ticket_keeps_the_filters_whose_gates_matter_most(trained):
    for round_number in (0, 6):
        ticket = load_ticket(trained / "tickets", NAME.format(round_number))
        assert ticket.rules.score_batches == 2
        assert ticket.kept == draw_kept(scores_by_hand(round_number, trained, 2), 0.5, "group")
    assert SearchFiles.read(RunDirectory(trained)).pruning(0.5).rules == "on2"


def test_a_second_search_draws_the_same(directory):
    before = np.load(directory.rankings)
    search_tickets(directory.path, **OPTIONS)
    after = np.load(directory.rankings)
    assert {name: after[name].tolist() for name in after} == {name: before[name].tolist() for name in before}


def test_retraining_draws_missing_ones_and_the_control_of_round_0(directory):
    parser = Parser("retrain", "")
    add_options(parser)
    words = ["--every", "1", "--ratio", "0.5", "--norm", "taylor", "--score_batches", "2"]
    kept = json.loads((directory.tickets / NAME.format(6) / "ticket.json").read_text())["kept"]
    shutil.rmtree(directory.tickets / NAME.format(6))
    names = draw_missing(directory, CONFIG, parser.parse_args(words), directory.snapshot_rounds())
    assert names == [NAME.format(r) for r in directory.snapshot_rounds()]
    ticket = load_ticket(directory.tickets, names[-1])
    assert ticket.kept == kept
    chosen = Retraining(directory, CONFIG.data)._choose_filters(Job.of(directory, ticket, "init", 0, CONFIG))
    assert chosen.kept == load_ticket(directory.tickets, NAME.format(0)).kept


def test_other_data_than_those_of_the_run_are_refused(directory):
    identity = json.loads((directory.path / "data.json").read_text())
    write_data(directory.path / "data.json", identity | {"training_images": 5})
    with pytest.raises(UserError, match="was trained on other data"):
        search_tickets(directory.path, **OPTIONS)
