"""The paper's communication table (arXiv 2210.16169), and the same figures computed from the models.

The constants are what no model knows: how often there was a sync, how many images there were, and where GPipe cut the
network. The printed figures fix the stage of each cut, not the block; of those that fit, these cut most evenly.
"""

from dataclasses import dataclass
from typing import Any

from loft_jax.ledger import ParameterSplit, boundary_floats, gpipe_bytes
from loft_jax.models import create_model

COLUMNS = (
    *("setting", "method", "published_gb", "predicted_gb", "relative_error", "improvement"),
    "predicted_gb_as_printed",
)
_GIGABYTE = 1e9
_EPOCHS = 20
_CUTS_34 = {2: ("stage3/block1",), 4: ("stage2/block1", "stage3/block1", "stage4/block1")}
_CUTS_18 = {2: ("stage2/block2",), 4: ("stage2/block1", "stage2/block2", "stage3/block2")}
CUTS = {"preresnet18": _CUTS_18, "preresnet34": _CUTS_34, "resnet34": _CUTS_34}

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A row of the paper's table.

    Attributes:
      model, image_shape, num_classes: of the network.
      images, images_counted: of the training set, and as the paper counts them.
      batch_size: of a step.
      syncs: of LoFT's whole pretraining.
      cuts: number of GPipe stages -> the blocks behind which the network is cut.
      published: method -> gigabytes (1e9 bytes) of the whole pretraining, as printed.
    """

    model: str
    image_shape: tuple[int, int, int]
    num_classes: int
    images: int
    images_counted: int
    batch_size: int
    syncs: int
    cuts: dict[int, tuple[str, ...]]
    published: dict[str, float]


def _cifar(model: str, num_classes: int, loft2: float, loft4: float) -> Setting:
    published = {"GPipe-2": 131.88, "LoFT-2": loft2, "GPipe-4": 461.60, "LoFT-4": loft4}
    return Setting(model, (32, 32, 3), num_classes, 50_000, 50_000, 128, 500, _CUTS_34, published)


_IMAGENET = {"GPipe-2": 20954.24, "LoFT-2": 791.09, "GPipe-4": 52385.59, "LoFT-4": 1284.84}
SETTINGS = {
    "PreResNet-34 CIFAR-10": _cifar("preresnet34", 10, 104.59, 144.27),
    "ResNet-34 CIFAR-10": _cifar("resnet34", 10, 104.60, 144.29),
    "PreResNet-34 CIFAR-100": _cifar("preresnet34", 100, 104.77, 144.64),
    "ResNet-34 CIFAR-100": _cifar("resnet34", 100, 104.78, 144.66),
    "PreResNet-18 ImageNet": Setting(
        "preresnet18", (224, 224, 3), 1000, 1_281_167, 1_300_000, 256, 6000, _CUTS_18, _IMAGENET
    ),
}


def communication_table() -> list[Row]:
    """The twenty cells of the paper's table, printed and predicted; keys are `COLUMNS`.

    `predicted_gb` counts the images there are; `predicted_gb_as_printed` counts them as the paper's figures do, for
    GPipe (B + 1) floor(N / B) an epoch; `improvement` is GPipe over LoFT, counted as printed.
    """
    return [row for name, setting in SETTINGS.items() for workers in (2, 4) for row in _rows(name, setting, workers)]


def _rows(name: str, setting: Setting, parts: int) -> list[Row]:
    imagenet = setting.image_shape[0] > 32
    model = create_model(setting.model, setting.num_classes, stem="imagenet" if imagenet else "cifar")
    boundaries = boundary_floats(model, setting.image_shape, setting.cuts[parts])
    batches = setting.images_counted // setting.batch_size
    counted = (setting.batch_size + 1) * batches
    gpipe, gpipe_printed = (
        gpipe_bytes(boundaries, _EPOCHS * images) / _GIGABYTE for images in (setting.images, counted)
    )
    split = ParameterSplit.of(model, model.filter_groups(), setting.image_shape)
    loft = setting.syncs * split.server_bytes(parts) / _GIGABYTE
    return [
        _row(name, setting, f"GPipe-{parts}", gpipe, gpipe_printed, None),
        _row(name, setting, f"LoFT-{parts}", loft, loft, gpipe_printed / loft),
    ]


def _row(name: str, setting: Setting, method: str, predicted: float, printed: float, improvement: float | None) -> Row:
    published = setting.published[method]
    values = (name, method, published, predicted, predicted / published - 1, improvement, printed)
    return dict(zip(COLUMNS, values, strict=True))
