"""The section "data" of a config."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from loft_jax.config.fields import MOST, Count, NonNegativeFloat, PositiveInt, Section
from loft_jax.errors import path_problem


class Data(Section):
    name: str = Field(
        "digits",
        min_length=1,
        description="digits, folder (of image files, a folder for each class), idx (MNIST's file format), arrays (of "
        "an .npz file), or any TFDS image-classification data set",
    )
    data_dir: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="directory of folder or idx, .npz file of arrays, or TFDS data directory; null: TFDS's default",
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2,
        description="share of each class that is held out as test images from a folder that has none; always the same "
        "images, whatever the seed",
    )
    validation: Annotated[NonNegativeFloat, Field(le=MOST)] = Field(
        0.0,
        description="training images that are held out for validation/loss and validation/accuracy: a share below 1, "
        "or a number of images; drawn by the seed, from each class its part",
    )
    batch_size: PositiveInt = Field(32, description="images per worker and local step")
    split: Literal["shared", "disjoint"] = Field(
        "shared",
        description="shared: every worker passes over the whole training set; disjoint: in each epoch a worker passes "
        "over its own part of it",
    )
    augment: bool = Field(True, description="random crop, and flip (digits: crop only) of training images")
    flip: bool | None = Field(
        None,
        description="whether a mirrored image keeps its class, so that data.augment mirrors images; null: true, except "
        "for digits",
    )
    loading: Literal["auto", "device", "stream"] = Field(
        "auto",
        description="device: keep the data set on every device; stream: decode batches when they are needed; auto: "
        "device if all images have the same size and fit there",
    )
    image_size: PositiveInt | None = Field(
        None,
        description="height and width to which images of mixed sizes are cropped (folder: all images, of any size); "
        "null: 224, except for folder, whose images then keep their size and must all have the same",
    )
    readers: Count | None = Field(
        None,
        description="processes that decode streamed images, for each process of the run; 0: threads decode them "
        "instead; null: one per core",
    )

    @model_validator(mode="before")
    @classmethod
    def _size_of_crops(cls, settings: Any) -> Any:
        """Set image_size to 224 if it is null, except for a folder."""
        if not isinstance(settings, dict) or settings.get("name") == "folder":
            return settings
        return settings if settings.get("image_size") is not None else {**settings, "image_size": 224}

    @field_validator("validation")
    @classmethod
    def _is_a_share_or_a_number(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"must be a share below 1, or a whole number of images; try {int(value)}")
        return value

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        parts = value.split("/")
        if len(value) > 200 or not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", part) for part in parts):
            raise ValueError("must be digits, folder, idx, arrays, or a TFDS name as in cifar10 or mnist_corrupted/fog")
        return value

    @field_validator("data_dir")
    @classmethod
    def _is_a_path(cls, value: str | None) -> str | None:
        if value is not None and (problem := path_problem(value)):
            raise ValueError(f"{problem}; use the name of a directory, or of an .npz file")
        return value
