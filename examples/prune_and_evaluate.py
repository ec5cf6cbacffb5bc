"""A ticket by hand: load a checkpoint, rank the filters, prune, and evaluate the compact network.

    python examples/prune_and_evaluate.py RUN [--ratio 0.5]

RUN is a run directory: python -m loft_jax.train --config digits --workdir runs/digits

Takes half a minute on a laptop. It shows why norm statistics must be estimated again after pruning. It does not retrain
the ticket: `python -m loft_jax.retrain` does.
"""

import argparse
import math
from pathlib import Path

import jax
import numpy as np

from loft_jax import (
    UserError,
    create_model,
    filter_scores,
    load_checkpoint,
    load_dataset,
    prune,
    rank_filters,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune the network of a run, and evaluate it.")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the filters removed (default: 0.5)")
    options = parser.parse_args()
    try:
        checkpoint = load_checkpoint(options.run)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    config = checkpoint["config"]
    data = load_dataset(config)
    model = create_model(config.model.name, data.num_classes, width=config.model.width, stem=config.model.stem)
    variables, groups = checkpoint["variables"], model.filter_groups()

    scores = filter_scores(variables, groups)
    kept, random = {}, {}
    rng = np.random.default_rng(0)
    for group in groups:
        count = max(1, group.width - math.floor(options.ratio * group.width + 1e-9))  # as tickets do
        kept[group.name] = np.flatnonzero(np.asarray(rank_filters(scores[group.name])) <= count)
        random[group.name] = np.sort(rng.permutation(group.width)[:count])

    print(f"{options.run}, round {checkpoint['round']}: {config.method}, {options.ratio:.0%} of the filters removed")
    show("full network", model, variables, data)
    compact_model = model.with_widths({name: len(filters) for name, filters in kept.items()})
    for name, filters in (("largest norms", kept), ("random filters", random)):
        compact = prune(variables, groups, filters)
        show(f"{name}, old statistics", compact_model, compact, data)
        show(f"{name}, new statistics", compact_model, with_new_statistics(compact_model, compact, data), data)
    print("not retrained yet: python -m loft_jax.retrain does that, and compares with controls")


def show(name, model, variables, data) -> None:
    """A line with size and accuracy."""
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    correct = [
        np.asarray(model.apply(variables, normalised(images, data)).argmax(axis=-1)) == labels
        for images, labels in zip(np.array_split(data.test_images, 4), np.array_split(data.test_labels, 4), strict=True)
    ]
    accuracy = np.concatenate(correct).mean()
    print(f"  {name:<32} {size:>9,} parameters  {accuracy:7.2%}  {'#' * round(40 * accuracy)}")


def with_new_statistics(model, variables, data, batches: int = 8):
    """The variables with norm statistics that are the mean over some training batches."""
    model = model.with_norms(momentum=0.0)  # a batch's statistics replace the old ones
    order = np.random.default_rng(0).permutation(len(data.train_images))
    found = []
    for batch in np.array_split(order[: 128 * batches], batches):
        images = normalised(data.train_images[batch], data)
        _, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        found.append(updated["batch_stats"])
    return {**variables, "batch_stats": jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)}


def normalised(images, data):
    mean, deviation = data.channel_statistics
    return (images - mean) / deviation


if __name__ == "__main__":
    main()
