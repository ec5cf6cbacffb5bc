"""The paper's table (arXiv 2210.16169) as published: numbers, no code."""

from dataclasses import dataclass
from typing import Any

Cuts = dict[int, tuple[str, ...]]
_CUTS_34: Cuts = {2: ("stage3/block1",), 4: ("stage2/block1", "stage3/block1", "stage4/block1")}
_CUTS_18: Cuts = {2: ("stage2/block2",), 4: ("stage2/block1", "stage2/block2", "stage3/block2")}
CUTS = {"preresnet18": _CUTS_18, "preresnet34": _CUTS_34, "resnet34": _CUTS_34}
RATIOS = (0.8, 0.5, 0.3)
Accuracies = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table.

    Attributes:
      model: name of the network.
      data: name of the data set in TFDS.
      image_shape, num_classes: shape of the images, and number of classes.
      images, images_counted: number of training images, and their number as the paper counts it.
      batch_size: images of a step.
      syncs: number of syncs in LoFT's whole pretraining.
      cuts: number of GPipe stages -> the blocks after which the network is cut.
      published: method -> gigabytes (1e9 bytes) of the whole pretraining, as printed.
      no_prune: test accuracy of the unpruned network, %.
      accuracies: method -> test accuracy, %, after removing each of `RATIOS` of the filters and retraining.
      improvements: LoFT's method -> bytes of GPipe over its bytes, as printed.
    """

    model: str
    data: str
    image_shape: tuple[int, int, int]
    num_classes: int
    images: int
    images_counted: int
    batch_size: int
    syncs: int
    cuts: Cuts
    published: dict[str, float]
    no_prune: float
    accuracies: dict[str, Accuracies]
    improvements: dict[str, float]


def _methods(gpipe: Any, loft2: Any, loft4: Any) -> dict[str, Any]:
    # GPipe's accuracy does not depend on its number of stages.
    return {"GPipe-2": gpipe, "LoFT-2": loft2, "GPipe-4": gpipe, "LoFT-4": loft4}


def _cifar(
    model: str, classes: int, moved: tuple[float, float], improvement4: float, no_prune: float, *rows: Accuracies
) -> PaperRow:
    published = {"GPipe-2": 131.88, "LoFT-2": moved[0], "GPipe-4": 461.60, "LoFT-4": moved[1]}
    sizes = ((32, 32, 3), classes, 50_000, 50_000, 128, 500, _CUTS_34)
    improvements = {"LoFT-2": 1.26, "LoFT-4": improvement4}
    return PaperRow(model, f"cifar{classes}", *sizes, published, no_prune, _methods(*rows), improvements)


def _imagenet() -> PaperRow:
    published = {"GPipe-2": 20954.24, "LoFT-2": 791.09, "GPipe-4": 52385.59, "LoFT-4": 1284.84}
    sizes = ((224, 224, 3), 1000, 1_281_167, 1_300_000, 256, 6000, _CUTS_18)
    accuracies = _methods((66.71, 69.14, 70.29), (65.41, 69.12, 69.64), (65.60, 68.93, 69.77))
    improvements = {"LoFT-2": 21.60, "LoFT-4": 40.77}
    return PaperRow("preresnet18", "imagenet2012", *sizes, published, 70.71, accuracies, improvements)


def _make_rows() -> dict[str, PaperRow]:
    return {
        "PreResNet-34 CIFAR-10": _cifar(
            *("preresnet34", 10, (104.59, 144.27), 3.20, 93.51),
            *((93.93, 94.38, None), (93.25, 93.43, None), (93.89, 94.02, None)),
        ),
        "ResNet-34 CIFAR-10": _cifar(
            *("resnet34", 10, (104.60, 144.29), 3.20, 93.22),
            *((93.69, 93.81, None), (93.38, 93.41, None), (93.41, 93.60, None)),
        ),
        "PreResNet-34 CIFAR-100": _cifar(
            *("preresnet34", 100, (104.77, 144.64), 3.19, 76.57),
            *((76.72, 77.09, None), (75.93, 77.27, None), (75.77, 76.79, None)),
        ),
        "ResNet-34 CIFAR-100": _cifar(
            *("resnet34", 100, (104.78, 144.66), 3.19, 75.93),
            *((75.51, 76.00, None), (76.11, 77.07, None), (75.05, 76.51, None)),
        ),
        "PreResNet-18 ImageNet": _imagenet(),
    }


PAPER_ROWS = _make_rows()
