"""Write a data set into one .npz file, which data.name=arrays reads: for a machine without network, or without TFDS.

    python examples/pack_dataset.py digits --out digits.npz
    python examples/pack_dataset.py cifar10 --data_dir ~/tensorflow_datasets --out cifar10.npz

    python -m loft_jax.train --data.name arrays --data.data_dir digits.npz

Pixels of photographs hardly compress: CIFAR-10 takes 171 MB. --files keeps the files in which TFDS stores the images.
If these are JPEGs, that is about a tenth. They are decoded once, by the first command that reads the file.
"""

import argparse
import os
from pathlib import Path

import numpy as np

from loft_jax import Config, UserError, load_dataset

SPLITS = ("train", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="digits, or a prepared TFDS data set")
    parser.add_argument("--data_dir", help="directory of TFDS's data sets")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split of digits")
    parser.add_argument("--files", action="store_true", help="keep the image files of a TFDS data set")
    parser.add_argument("--out", metavar="FILE.npz", required=True)
    options = parser.parse_args()
    try:
        settings = {"seed": options.seed, "data": {"name": options.name, "data_dir": options.data_dir}}
        data = load_dataset(Config.model_validate(settings))
    except (UserError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    if data.streamed:
        raise SystemExit(f"error: {options.name} has images of several sizes, or too many for a device")
    arrays = {"name": np.array(data.name)}
    for split in SPLITS:
        arrays[f"{split}_images"] = getattr(data, f"{split}_images")
        arrays[f"{split}_labels"] = getattr(data, f"{split}_labels")
    if options.files and options.name == "digits":
        raise SystemExit("error: --files is for data sets of TFDS; digits are no image files")
    if options.files:
        arrays = with_files(arrays, options.name, options.data_dir)
    np.savez_compressed(options.out, **arrays)
    size = Path(options.out).stat().st_size
    print(f"{options.out}: {data.examples:,} training and {data.test_examples:,} test images, {size / 1e6:.1f} MB")


def with_files(arrays: dict[str, np.ndarray], name: str, data_dir: str | None) -> dict[str, np.ndarray]:
    """Replace the pixels by the files of the same images in TFDS, in the same order."""
    import tensorflow_datasets as tfds

    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    newest = max((root / name).glob("*.*.*"), key=lambda path: [int(part) for part in path.name.split(".")])
    builder = tfds.builder_from_directory(newest)
    class_names = {"class_names": np.array(builder.info.features["label"].names)}
    for split, stored in zip(SPLITS, ("train", "test" if "test" in builder.info.splits else "validation"), strict=True):
        source = builder.as_data_source(split=stored, decoders={"image": tfds.decode.SkipDecoding()})
        records = [source[i] for i in range(len(source))]
        assert [record["label"] for record in records] == arrays[f"{split}_labels"].tolist()
        del arrays[f"{split}_images"]
        arrays[f"{split}_files"] = np.frombuffer(b"".join(record["image"] for record in records), np.uint8)
        arrays[f"{split}_ends"] = np.cumsum([len(record["image"]) for record in records])
    return arrays | class_names


if __name__ == "__main__":
    main()
