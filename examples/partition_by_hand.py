"""A round of LoFT by hand: deal the filters, train each worker's sub-CNN, write the slices back.

    python examples/partition_by_hand.py

Takes half a minute on a laptop, and needs no run. It shows that the parts are exact: what goes out comes back to the
bit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from loft_jax import Config, create_model, draw_partition, extract, load_dataset, merge

WORKERS, STEPS, LEARNING_RATE = 4, 3, 0.05


def main() -> None:
    data = load_dataset(Config())
    mean, deviation = data.channel_statistics
    images, labels = (data.train_images - mean) / deviation, data.train_labels
    model = create_model("preresnet20", num_classes=10, width=8)
    groups = model.filter_groups()
    full = jax.jit(model.init)(jax.random.key(0), images[:1])

    partition = draw_partition(jax.random.key(1), groups, WORKERS)
    print(f"full network: {size(full):,} numbers in {len(groups)} groups of filters")
    for name, mask in partition.items():
        owners = np.asarray(mask).argmax(axis=0)
        print(f"  {name}: filter -> worker {''.join(map(str, owners))}")
        assert (np.asarray(mask).sum(axis=0) == 1).all(), "every filter has one owner"

    # Every worker's sub-CNN has the same shape, so there is one program for all of them.
    sub_cnn = model.with_widths({name: mask.shape[1] // WORKERS for name, mask in partition.items()})
    step = jax.jit(lambda variables, images, labels: sgd_step(sub_cnn, variables, images, labels))

    # Each worker takes its slices, trains alone on its own batches, and writes them back.
    trained, after = [], full
    for worker in range(WORKERS):
        owned = {name: np.flatnonzero(mask[worker]) for name, mask in partition.items()}
        compact = extract(full, groups, owned)
        assert same(merge(full, groups, owned, compact), full), "out and back without training changes nothing"
        batches = np.random.default_rng(worker).integers(0, len(images), size=(STEPS, 32))
        losses = []
        for batch in batches:
            compact, loss = step(compact, images[batch], labels[batch])
            losses.append(float(loss))
        print(f"worker {worker}: {size(compact):,} numbers, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
        trained.append((owned, compact))
        after = merge(after, groups, owned, compact)

    # merge takes shared variables from the last worker; a sync averages them over all.
    shared = jax.tree.map(lambda *leaves: sum(leaves) / WORKERS, *(compact["params"]["head"] for _, compact in trained))
    after["params"]["head"] = shared

    for owned, compact in trained:
        kernel = ("params", "stage2_block2", "conv1", "kernel")
        assert np.array_equal(at(extract(after, groups, owned), kernel), at(compact, kernel)), (
            "slices come back exactly"
        )
    print("every owned slice is in the full network, to the bit")
    changed = sum(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(after), strict=True))
    print(f"{changed} of {len(jax.tree.leaves(full))} arrays have changed; the next round deals again")


def sgd_step(model, variables, images, labels):
    """One step of plain SGD: the new variables, and the loss before."""

    def loss_of(params):
        logits, updated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean(), updated

    (loss, updated), gradient = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
    params = jax.tree.map(lambda weight, slope: weight - LEARNING_RATE * slope, variables["params"], gradient)
    return {"params": params, **updated}, loss


def size(variables) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def at(tree, path):
    for name in path:
        tree = tree[name]
    return np.asarray(tree)


if __name__ == "__main__":
    main()
