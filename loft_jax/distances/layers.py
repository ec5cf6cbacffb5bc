"""The layers of a checkpoint from anywhere: which arrays are kernels, and along which axis their filters run.

PyTorch names a kernel `weight` and puts the filters first: [out, in, height, width], [out, in]. Flax names it `kernel`
and puts them last: [height, width, in, out], [in, out].
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from loft_jax.errors import UserError
from loft_jax.filters import FilterGroup

Layout = Literal["torch", "flax"]
LAYOUTS = get_args(Layout)

# What a layer's kernel is called, and the layout that goes with the name; `w` is Haiku's.
_KERNELS: dict[str, Layout] = {"weight": "torch", "kernel": "flax", "w": "flax"}
# What training keeps beside the parameters, under the same names.
_NOT_WEIGHTS = {
    *("opt_state", "optimizer", "optimizer_state_dict", "optimizer_states", "momentum", "mu", "nu", "trace"),
    *("ema", "batch_stats", "training", "checksums"),
}
_WRAPPERS = {"params", "variables", "state_dict", "model", "model_state_dict", "module", "net", "_orig_mod"}
_LARGEST_WINDOW = 11


@dataclass(frozen=True)
class Layer:
    """A layer with filters.

    Attributes:
      name: path of the layer, without what only says where in the file the weights are.
      path: path of its kernel in the file.
      axis: along which the filters run.
      shape: of the kernel as Flax has it, filters last.
    """

    name: str
    path: str
    axis: int
    shape: tuple[int, ...]

    @property
    def group(self) -> FilterGroup:
        """The filters, as a group."""
        return FilterGroup(self.name, self.shape[-1], {self.path: self.axis}, partitioned=False, kernel=self.path)


def find_layers(
    arrays: Mapping[str, np.ndarray], label: str, layout: Layout | None = None
) -> tuple[Layout, list[Layer]]:
    """Find the layers of a checkpoint, in the order of the file.

    Args:
      arrays: every array of the file, by slash-joined path.
      label: what messages begin with.
      layout: of the kernels; None to tell it by their shapes, and otherwise by their names. If it is given, arrays
        of two and more axes count where none is named as a kernel.

    Returns:
      The layout, and the layers.

    Raises:
      UserError: there are no kernels, or their layout cannot be told.
    """
    kernels = {path: array for path, array in arrays.items() if array.ndim > 1 and _is_weight(path)}
    named = {path: array for path, array in kernels.items() if _leaf(path) in _KERNELS}
    if not named and layout is None:
        there = ", ".join(list(arrays)[:3])
        raise UserError(
            f"{label}: no array is named as a kernel, {' or '.join(_KERNELS)} (it has {there}); "
            f"give --layout {' or --layout '.join(LAYOUTS)} to take every array of two axes or more"
        )
    chosen = named or kernels
    if not chosen:
        raise UserError(f"{label}: no array has two axes or more, so there is no kernel; give a file of weights")
    layout = layout or _tell_layout(chosen, label)
    found: dict[str, Layer] = {}
    for path, array in chosen.items():
        axis = 0 if layout == "torch" else array.ndim - 1
        shape = array.shape if layout == "flax" else (*array.shape[2:], array.shape[1], array.shape[0])
        name = _layer_name(path)
        # Of two networks in one file, the second one keeps its whole path.
        name = path if name in found else name
        found[name] = Layer(name, path, axis, tuple(shape))
    return layout, list(found.values())


def match_layers(checkpoints: Sequence[tuple[str, Iterable[Layer]]]) -> tuple[list[str], list[str]]:
    """Match the layers of checkpoints by name and shape.

    Args:
      checkpoints: name of each checkpoint, and its layers.

    Returns:
      The names of the layers that all of them have, in the order of the first; and what does not match, a line each.

    Raises:
      UserError: no layer matches.
    """
    tables = [{layer.name: layer.shape for layer in layers} for _, layers in checkpoints]
    names = list(dict.fromkeys(name for table in tables for name in table))
    common, unmatched = [], []
    for name in names:
        lacking = [label for (label, _), table in zip(checkpoints, tables, strict=True) if name not in table]
        shapes = list(dict.fromkeys(table[name] for table in tables if name in table))
        if lacking:
            unmatched.append(f"{name}: not in {', '.join(lacking)}")
        elif len(shapes) > 1:
            unmatched.append(f"{name}: differs in shape, {' and '.join(map(str, shapes))}")
        else:
            common.append(name)
    if not common:
        few = "; ".join(unmatched[:3])
        raise UserError(
            f"no layer is in all {len(checkpoints)} checkpoints with the same name and shape ({few}); give checkpoints "
            "of one network"
        )
    return common, unmatched


def _tell_layout(kernels: Mapping[str, np.ndarray], label: str) -> Layout:
    """Tell the layout by the kernels' shapes, and where they do not say it by their names."""
    votes: dict[Layout, str] = {}
    for path, array in kernels.items():
        if (vote := _vote(array.shape)) is not None:
            votes.setdefault(vote, f"{path} {array.shape}")
    if len(votes) > 1:
        raise UserError(
            f"{label}: {votes['torch']} looks like a kernel of PyTorch, and {votes['flax']} like one of Flax; say "
            "which with --layout torch or --layout flax"
        )
    if votes:
        return next(iter(votes))
    names = sorted({_KERNELS[_leaf(path)] for path in kernels})
    if len(names) > 1:
        raise UserError(f"{label}: has names of PyTorch and of Flax; say which with --layout torch or --layout flax")
    return names[0]


def _vote(shape: tuple[int, ...]) -> Layout | None:
    """Tell the layout of a 2-D convolution by where its window is; None if it could be at either end."""
    if len(shape) != 4:
        return None
    first, last = (a == b <= _LARGEST_WINDOW for a, b in (shape[:2], shape[2:]))
    return None if first == last else "flax" if first else "torch"


def _parts(path: str) -> list[str]:
    parts = path.split("/")
    return parts[:-1] if parts[-1] in ("value", "raw_value") else parts


def _leaf(path: str) -> str:
    return _parts(path)[-1]


def _is_weight(path: str) -> bool:
    parts = _parts(path)
    return not _NOT_WEIGHTS & set(parts) and not any("embed" in part.lower() for part in parts[-2:])


def _layer_name(path: str) -> str:
    parts = _parts(path)
    while len(parts) > 2 and parts[0] in _WRAPPERS:
        parts = parts[1:]
    return "/".join(parts[:-1] if parts[-1] in _KERNELS and len(parts) > 1 else parts)
