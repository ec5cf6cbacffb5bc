"""Run directories as commands leave them, written in a moment: nothing is trained, the numbers are made up."""

from types import SimpleNamespace

import numpy as np
import yaml

from loft_jax.config.config import Config
from loft_jax.files import write_atomically
from loft_jax.filters.selection import draw_kept
from loft_jax.models.registry import create_model
from loft_jax.report.run_files import RunFiles
from loft_jax.retrain.results import write_results
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.storage.summary import PHASES
from loft_jax.tickets.search import TicketSearch
from loft_jax.tickets.snapshots import rank_groups
from loft_jax.tickets.ticket import Ticket, ticket_name


def fake_run(path, rounds=12, *, finished=True, seed=0, **sections):
    """A run with a row a round, losses and accuracies that approach their end, and times of all phases."""
    config = Config.model_validate({"train": {"rounds": rounds, "eval_every": 4}, "seed": seed, **sections})
    directory = RunDirectory(path)
    directory.path.mkdir(parents=True)
    (directory.path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(), allow_unicode=True))
    done = rounds if finished else rounds // 2
    for number in range(done + 1):
        share = 1 - 0.6**number
        row = {"round": number, "step": number * 16, "epoch": number / 2}
        if number:
            row |= {"train/loss": 2.3 - 2.2 * share, "learning_rate": 0.1, "bytes_on_the_wire": 1e6}
            row |= {"seconds/train": 0.9, "seconds/sync": 0.1, "seconds/evaluation": 0.2}
        if number % 4 == 0 or number == rounds:
            row |= {"test/loss": 2.3 - 2 * share, "test/accuracy": 0.1 + 0.85 * share}
        directory.append(row)
    if finished:
        directory.write_summary(fake_summary() | {"seed": seed, "round": done, "test/accuracy": row["test/accuracy"]})
    return directory


def fake_summary():
    """What every summary has."""
    return {
        **{"model": "preresnet20", "data": "digits", "method": "LoFT-4", "seed": 0, "round": 12, "epoch": 6.0},
        **{"test/accuracy": 0.95, "test/loss": 0.3, "images_per_second": 100.0},
        **{f"seconds/{phase}": 1.0 for phase in PHASES},
    }


def fake_search(directory, snapshots=7, ratios=(0.8, 0.5), seed=0, model="preresnet20"):
    """A ticket search over scores that drift to their end and stay there."""
    rng = np.random.default_rng(seed)
    groups = create_model(model, 10).filter_groups()
    first, last = ({g.name: rng.random(g.width) for g in groups} for _ in range(2))
    config = directory.read_config()
    rounds = np.unique(np.linspace(0, directory.rows()[-1]["round"], snapshots).round().astype(int)).tolist()

    def scores(round_number, norm, batches):
        share = min(1.0, 1.5 * round_number / rounds[-1])
        return {g.name: (1 - share) * first[g.name] + share * last[g.name] for g in groups}

    def ticket(values, round_number, ratio, scope, norm, rules):
        kept = draw_kept(values, ratio, scope, rules)
        return Ticket(kept, ratio, scope, norm, round_number, str(directory.path), config.hash(), rules)

    stand_in = SimpleNamespace(directory=directory, rounds=rounds, groups=groups, scores=scores, ticket=ticket)
    stand_in.path, stand_in.config_hash = directory.path, config.hash()
    stand_in.check_rules = lambda rules: rules.check(g.name for g in groups)
    reference = SimpleNamespace(
        snapshots=SimpleNamespace(path=directory.path),
        round=rounds[-1],
        meaningless=None,
        ranks=lambda norm, batches: rank_groups(scores(rounds[-1], norm, batches)),
    )
    TicketSearch.compute(stand_in, reference, ratios, "group", "l2").write(directory, rounds)


def fake_retraining(directory, ratio, accuracies, mode="rewind", ticket_round=12, scope="group", norm="l2"):
    """Finished retrainings of one ticket, one for each accuracy and seed."""
    name = ticket_name(ticket_round, scope, norm, ratio)
    facts = fake_summary() | {"ticket": name, "mode": mode, "rewind_to": 0, "ticket_round": ticket_round}
    facts |= {"ratio": ratio, "scope": scope, "norm": norm, "rounds": 12, "settings": "abc", "test/loss": 0.1}
    for cost in ("parameters", "flops_per_image", "steps_images_per_second"):
        facts |= {cost: 100.0, f"{cost}_unpruned": 200.0}
    for seed, accuracy in enumerate(accuracies):
        path = directory.retrain / name / mode / f"seed{seed}"
        path.mkdir(parents=True)
        RunDirectory(path).write_summary({**facts, "seed": seed, "test/accuracy": accuracy})
    write_results(directory)


def complete_run(path, **options):
    """A run with everything that a report can show."""
    directory = fake_run(path, **options)
    fake_search(directory, ratios=(0.8, 0.5, 0.0))
    for ratio, mode, accuracies in [
        (0.0, "rewind", [0.95, 0.96]),
        (0.8, "rewind", [0.93, 0.95]),
        (0.8, "random", [0.90, 0.91]),
        (0.5, "rewind", [0.95]),
    ]:
        fake_retraining(directory, ratio, accuracies, mode)
    fake_retraining(directory, 0.8, [0.89, 0.92], ticket_round=4)
    write_atomically(directory.path / "cost.csv", "workers,method,bytes_total\n4,LoFT-4,12.5\n4,GPipe-4,80.0\n")
    return directory


def fake_levels(path, accuracies, losses=(1.0, 0.5, 0.25, 0.5)):
    """A lottery, finished.

    `accuracies`: control -> for each seed a list by level, None where nothing was trained: the test accuracy where the
    validation loss is least; it is 0.1 less elsewhere. A level leaves 80 % of the weights. Rounds have ten steps.
    """
    path.mkdir(parents=True, exist_ok=True)
    config = Config.model_validate({"data": {"validation": 0.1}, "train": {"rounds": len(losses) - 1}})
    (path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(), allow_unicode=True))
    (path / "lottery.yaml").write_text("levels: 2\n")
    for control, seeds in accuracies.items():
        for seed, levels in enumerate(seeds):
            for level, accuracy in enumerate(levels):
                if accuracy is not None:
                    _fake_level(path / f"seed{seed}/level{level}/{control}", control, seed, level, accuracy, losses)
    return RunDirectory(path)


def _fake_level(path, control, seed, level, accuracy, losses):
    path.mkdir(parents=True)
    directory = RunDirectory(path)
    for number, loss in enumerate(losses):
        found = accuracy if number == losses.index(min(losses)) else round(accuracy - 0.1, 10)
        directory.append(
            {
                **{"round": number, "step": 10 * number, "epoch": number / 2},
                **{"validation/loss": loss, "validation/accuracy": found, "test/loss": loss, "test/accuracy": found},
            }
        )
    weights = {"weights": 1000, "weights_left": round(1000 * 0.8**level)}
    facts = {"seed": seed, "level": level, "control": control, "rewind_to": 0, **weights}
    directory.write_summary(fake_summary() | facts)


def read(directory):
    """All that a report reads of it."""
    return RunFiles.read(directory, directory.read_config())
