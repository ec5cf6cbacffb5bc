"""Networks and data of users' own that are refused: `train` exits with code 2 and one message that names the thing."""

import numpy as np
import pytest
from helpers import TESTS
from helpers.refused import outcome
from PIL import Image

NETS = f"{TESTS}/helpers/own_networks.py"
IMAGES = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
LABELS = np.array([0, 1, 2, 0, 1, 2])
ARRAYS = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES, "test_labels": LABELS}


def folder(root, *names, size=(6, 6)):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(root / name)
    return root


def network(name, **options):
    given = "{" + ", ".join(f"{key}: {value}" for key, value in options.items()) + "}"
    return lambda place: ["--model.name", f"{NETS}:{name}", *(["--model.options", given] if options else [])]


def images(*names, **others):
    """A folder with two classes in train and test, and more images; `others` may replace the bytes of one."""

    def arguments(place):
        root = folder(
            place / "images", *(f"{part}/{c}/{i}.png" for part in ("train", "test") for c in "ab" for i in "12")
        )
        folder(root, *names, size=(5, 6))
        for name, content in others.items():
            (root / name.replace("__", "/")).with_suffix(".png").write_bytes(content)
        return ["--data.name", "folder", "--data.data_dir", str(root)]

    return arguments


def bare(*names):
    def arguments(place):
        root = folder(place / "images", *names)
        root.mkdir(exist_ok=True)
        return ["--data.name", "folder", "--data.data_dir", str(root)]

    return arguments


def arrays(**changes):
    def arguments(place):
        np.savez(place / "mine.npz", **(ARRAYS | changes))
        return ["--data.name", "arrays", "--data.data_dir", str(place / "mine.npz")]

    return arguments


def weights(change):
    """The network Plain from a file of its weights, changed."""

    def arguments(place):
        shapes = {"Dense_0": (64, 32), "Dense_2": (32, 16), "Dense_1": (16, 10)}
        flat = {f"{name}/kernel": np.zeros(shape, np.float32) for name, shape in shapes.items()}
        flat |= {f"{name}/bias": np.zeros(shape[-1], np.float32) for name, shape in shapes.items()}
        np.savez(place / "start.npz", **change(flat))
        return [*network("Plain")(place), "--model.weights", str(place / "start.npz")]

    return arguments


BAD = {
    "no such callable": (network("Plane"), "has no callable Plane; did you mean Plain?"),
    "no num_classes": (network("no_classes", width=3), "does not take num_classes, the number of logits"),
    "no module": (network("no_module"), "returns list; a callable that takes num_classes must return a flax.linen"),
    "two inputs": (network("TwoInputs"), "TwoInputs: cannot be called with a batch of 8x8x1 images of digits: TypeErr"),
    "nothing to split": (network("Summed"), "nothing of the network can be split (Dense_0: reduce_sum at"),
    "widths that are not divided": (
        lambda place: [*network("Small", width=6)(place), "--loft.partition", "all"],
        "loft.workers=4: must divide every partitioned width (6, 12, 16); try 2",
    ),
    "an operation without a rule": (
        network("Decomposed"),
        "nothing of the network can be split (Dense_0: qr at own_networks.py:",
    ),
    "no images": (bare(), "images: holds no data set: no images in class folders"),
    "one class": (bare("cat/1.png", "cat/2.png"), "holds one class only, cat; must be two or more folders"),
    "an unreadable image": (images(train__a__1=b"GIF"), "train/a/1.png cannot be decoded"),
    "a truncated image": (images(test__b__2=b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "test/b/2.png cannot be decoded"),
    "mixed sizes": (images("train/a/3.png"), "train/a/3.png is 6x5, and train/a/1.png is 6x6; set data.image_size to"),
    "object arrays": (
        arrays(train_images=np.array([IMAGES[0], None], object)),
        "train_images holds Python objects",
    ),
    "NaN": (
        arrays(train_images=np.full((6, 4), np.nan, np.float32)),
        "train_images holds nan at [0, 0]; must be finite",
    ),
    "labels that are not 0 to k-1": (arrays(train_labels=LABELS * 2), "train_labels holds no label 1, and there are"),
    "a checkpoint of another network": (
        weights(lambda flat: {name: np.concatenate([a, a], -1) for name, a in flat.items()}),
        "start.npz: params/Dense_0/bias is (64,) there, and (32,) in the network; use weights of the same model",
    ),
    "other names": (
        weights(lambda flat: {f"layers/{name}": array for name, array in flat.items()}),
        "start.npz: holds no params/Dense_0/bias and 5 more, of 6 variables of the network; did you mean params/layers",
    ),
    "half of its layers": (
        weights(lambda flat: {name: array for name, array in flat.items() if "Dense_0" in name}),
        "start.npz: holds no params/Dense_1/bias and 3 more, of 6 variables of the network",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_a_run_of_bad_input_is_refused_before_its_first_round(arguments, message, tmp_path):
    code, _, said = outcome("train", *arguments(tmp_path), "--workdir", str(tmp_path / "run"), sees_devices=True)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("error: ")
    assert message in said
