"""TFDS data sets that tests write themselves, in ArrayRecord files and without TensorFlow."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from loft_jax.config.data import Data
from loft_jax.data.tfds import load_tfds


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return io.BytesIO(file.getvalue())


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Images, as pixels or as the bytes of a file, and labels given to its constructor, split by split."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, content, features, **kwargs):
        self._content, self._features = content, features
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self._features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(*content) for split, content in self._content.items()}

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = io.BytesIO(image) if isinstance(image, bytes) else png(image)
            yield i, {"image": file, "label": label if isinstance(label, list) else int(label)}


def tiny_content(seed=0, splits=(("train", 12), ("test", 5)), shape=(8, 6, 3)):
    rng = np.random.default_rng(seed)
    return {
        split: (rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, 3, count)) for split, count in splits
    }


def prepare(directory, content, version="1.10.0", shape=(8, 6, 3), label=None, name="tiny_images"):
    label = label or tfds.features.ClassLabel(num_classes=3)
    features = {"image": tfds.features.Image(shape=shape), "label": label}
    TinyImages.VERSION, TinyImages.name = tfds.core.Version(version), name
    builder = TinyImages(content, features, data_dir=directory, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(directory) / name / version


def load(name, directory, **settings):
    """`load_tfds` of a name and a directory."""
    return load_tfds(Data(name=name, data_dir=str(directory), **settings))


def photographs(count, seed=0, classes=3, heights=(40, 90), widths=(40, 90)):
    """Files of JPEGs of mixed sizes, coarse and fine in structure as photographs are, with a colour for each label.

    Returns:
      (list of bytes, labels).
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    files = []
    for label in labels:
        width, height = int(rng.integers(*widths)), int(rng.integers(*heights))
        pixels = np.full((height, width, 3), 90.0) + 70 * np.eye(3)[label % 3]
        for octave in (4, 16, 64, 256):
            noise = rng.uniform(0, 255, (octave, octave, 3)).astype(np.uint8)
            pixels += (np.asarray(Image.fromarray(noise).resize((width, height))) - 127.5) * 2 / octave**0.4
        file = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "jpeg", quality=90)
        files.append(file.getvalue())
    return files, labels
