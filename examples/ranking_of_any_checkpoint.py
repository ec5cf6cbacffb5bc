"""When does the ranking of a layer's filters settle? For checkpoints that were not trained with loft_jax.

    python examples/ranking_of_any_checkpoint.py [CHECKPOINT.npz ...] [--layer NAME] [--out FILE.png]

A checkpoint is an .npz file of named arrays; give them in order of training. From PyTorch, whose kernels are
[out, in, height, width], save one with

    numpy.savez(file, **{name: tensor.numpy() for name, tensor in model.state_dict().items()})

Without files, the example makes up eight checkpoints whose filters move less and less.

Takes a few seconds. Saves a heat map: the distance of every checkpoint from every other one.
"""

import argparse

import matplotlib as mpl
import numpy as np

from loft_jax import FilterGroup, expected_footrule, filter_scores, footrule_matrix, rank_filters

mpl.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description="When does the ranking of a layer's filters settle?")
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT.npz")
    parser.add_argument("--layer", default="layer2.1.conv1.weight", help="name of a kernel [out, in, height, width]")
    parser.add_argument("--out", default="ranking.png", metavar="FILE.png")
    options = parser.parse_args()
    checkpoints = [np.load(path) for path in options.checkpoints] or made_up_checkpoints(options.layer)

    ranks = np.stack([ranks_of(checkpoint[options.layer]) for checkpoint in checkpoints])
    filters = ranks.shape[1]
    distances = np.asarray(footrule_matrix(ranks)) / expected_footrule(filters)

    print(f"{options.layer}: {filters} filters, {len(ranks)} checkpoints; distance from the last, 1 is chance")
    for number, distance in enumerate(distances[-1]):
        print(f"  checkpoint {number}  {distance:6.3f}  {'#' * round(40 * min(distance, 1))}")
    top = np.argsort(ranks[-1])[:5]
    print(f"best filters at the end: {top.tolist()}; at the start they had the ranks {ranks[0][top].tolist()}")
    draw(distances, options.out)
    print(f"saved {options.out}")


def ranks_of(kernel: np.ndarray) -> np.ndarray:
    """The rank of each filter of a kernel [out, in, height, width], 1 for the largest norm."""
    kernel = kernel.transpose(2, 3, 1, 0)  # as Flax has it: [height, width, in, out]
    group = FilterGroup("layer", width=kernel.shape[-1], axes={"params/layer/kernel": 3}, partitioned=True)
    scores = filter_scores({"params": {"layer": {"kernel": kernel}}}, [group], norm="l2")
    return np.asarray(rank_filters(scores["layer"]))


def made_up_checkpoints(layer: str) -> list[dict[str, np.ndarray]]:
    """Eight moments of a training in which every step is half as long as the one before."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(64, 32, 3, 3))
    checkpoints = [{layer: kernel}]
    for step in range(7):
        kernel = kernel + 0.5**step * rng.normal(size=kernel.shape)
        checkpoints.append({layer: kernel})
    return checkpoints


def draw(distances: np.ndarray, path: str) -> None:
    """A heat map, dark where two checkpoints rank the filters alike."""
    figure, axes = plt.subplots(figsize=(4.5, 3.8), layout="constrained")
    image = axes.imshow(distances, cmap="cividis", vmin=0, vmax=1, origin="lower")
    axes.set(xlabel="checkpoint", ylabel="reference: checkpoint")
    figure.colorbar(image, label="filter distance / chance")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
