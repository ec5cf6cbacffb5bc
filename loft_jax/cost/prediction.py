"""The paper's table (arXiv 2210.16169), and its communication figures computed from the models.

The paper's rows give what a model does not: the number of syncs and of images, and where GPipe cuts the network. The
printed figures show the stage of each cut, but not the block; the blocks used here divide the network most evenly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loft_jax.filters import FilterGroup, filter_cuts, flatten_paths
from loft_jax.gpipe import boundary_floats
from loft_jax.loft import BYTES_OF_FLOAT
from loft_jax.models import Network, create_model, variable_shapes
from loft_jax.paper import PAPER_ROWS, PaperRow

COLUMNS = (
    *("setting", "method", "published_gb", "predicted_gb", "relative_error", "improvement"),
    "predicted_gb_as_printed",
)
_GIGABYTE = 1e9
_EPOCHS = 20
Row = dict[str, Any]


def communication_table() -> list[Row]:
    """Return the twenty cells of the paper's table, printed and predicted; keys are `COLUMNS`.

    `predicted_gb` counts the images that there are. `predicted_gb_as_printed` counts images as the paper's figures do:
    for GPipe (B + 1) floor(N / B) in an epoch. `improvement` is GPipe divided by LoFT, counted as printed.
    """
    return [row for name, paper in PAPER_ROWS.items() for workers in (2, 4) for row in _rows(name, paper, workers)]


def _rows(name: str, paper: PaperRow, devices: int) -> list[Row]:
    imagenet = paper.image_shape[0] > 32
    model = create_model(paper.model, paper.num_classes, stem="imagenet" if imagenet else "cifar")
    boundaries = boundary_floats(model, paper.image_shape, paper.cuts[devices])
    batches = paper.images_counted // paper.batch_size
    counted = (paper.batch_size + 1) * batches
    gpipe, gpipe_printed = (gpipe_bytes(boundaries, _EPOCHS * images) / _GIGABYTE for images in (paper.images, counted))
    split = ParameterSplit.from_groups(model, model.filter_groups(), paper.image_shape, devices)
    loft = paper.syncs * split.server_bytes(devices) / _GIGABYTE
    return [
        _row(name, paper, f"GPipe-{devices}", gpipe, gpipe_printed, None),
        _row(name, paper, f"LoFT-{devices}", loft, loft, gpipe_printed / loft),
    ]


def _row(name: str, paper: PaperRow, method: str, predicted: float, printed: float, improvement: float | None) -> Row:
    published = paper.published[method]
    values = (name, method, published, predicted, predicted / published - 1, improvement, printed)
    return dict(zip(COLUMNS, values, strict=True))


@dataclass(frozen=True)
class ParameterSplit:
    """The parameters of a network by what a parameter server does with them (the paper's communication column).

    Attributes:
      partitioned: P, parameters of the partitioned groups that a worker holds: one worker holds each of them. A kernel
        between two such groups counts with the 1/S of it that lies in the workers' blocks.
      shared_kernels: F, kernels of the other groups: every worker sends and receives them.
      rest: R, all other parameters (stem, shortcuts, head, other norms): counted once per worker and sync.
    """

    partitioned: int
    shared_kernels: int
    rest: int

    @classmethod
    def from_groups(
        cls, model: Network, groups: Sequence[FilterGroup], image_shape: tuple[int, ...], workers: int
    ) -> "ParameterSplit":
        """Split the parameters of a model by its groups, for images of this shape (height, width, channels)."""
        partitioned = filter_cuts(group for group in groups if group.partitioned)
        declared = {path for group in groups for path in group.axes}
        sizes = {"partitioned": 0, "shared_kernels": 0, "rest": 0}
        variables = variable_shapes(model, image_shape)
        for path, leaf in flatten_paths({"params": variables["params"]}).items():
            if path in partitioned:
                sizes["partitioned"] += leaf.size // workers ** (len(partitioned[path]) - 1)
            elif path in declared and path.endswith("/kernel"):
                sizes["shared_kernels"] += leaf.size
            else:
                sizes["rest"] += leaf.size
        return cls(**sizes)

    def server_bytes(self, workers: int) -> int:
        """Count the bytes that the paper's server sends and receives in one sync: 4 (2 P + S (2 F + R))."""
        return BYTES_OF_FLOAT * (2 * self.partitioned + workers * (2 * self.shared_kernels + self.rest))


def gpipe_bytes(boundaries: Sequence[int], images: int, bytes_of_number: int = BYTES_OF_FLOAT) -> int:
    """Count the bytes between GPipe's stages for these images: activations forward, their gradients back."""
    return 2 * bytes_of_number * sum(boundaries) * images
