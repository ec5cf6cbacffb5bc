"""The same network and the same local step in PyTorch, for comparisons of speed. Needs the extra `torch`.

Everything is written as PyTorch runs it fastest: channels-last tensors, ReLU in place, the fused SGD, and one gather
for crop and mirroring of a whole batch. Names of modules are those of the Flax module, so weights convert by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from loft_jax.config import Config
from loft_jax.data import Dataset
from loft_jax.models import Network

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_NORM_EPSILON, _NORM_MOMENTUM = 1e-5, 0.1  # PyTorch's momentum is the weight of the new value.

Tree = dict[str, Any]


class Twin(nn.Module):
    """The PyTorch twin of a pre-activation ResNet of ours with the CIFAR stem, at any widths of its filter groups.

    Args:
      model: our module; `blocks`, `width`, `num_classes` and the widths of its filter groups are read from it.
    """

    def __init__(self, model: Any):
        super().__init__()
        assert (model.preactivation, model.stem, dict(model.branch_scales)) == (True, "cifar", {}), "there is no twin"
        inner = {group.name: group.width for group in model.filter_groups()}
        self.stem = _convolution(3, model.width, 3)
        channels, blocks = model.width, []
        for name in model.block_names():
            stage, block = (int(part[5:]) for part in name.split("/"))
            features, stride = model.width * 2 ** (stage - 1), 2 if stage > 1 and block == 1 else 1
            module = name.replace("/", "_")
            self.add_module(module, _Block(channels, inner[name], features, stride))
            blocks.append(module)
            channels = features
        self._blocks = blocks
        self.norm = _norm(channels)
        self.head = nn.Linear(channels, model.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images, float32 [batch, channels, height, width], to logits, float32 [batch, classes]."""
        x = self.stem(images)
        for name in self._blocks:
            x = getattr(self, name)(x)
        return self.head(functional.relu(self.norm(x), inplace=True).mean(dim=(2, 3)))


class _Block(nn.Module):
    def __init__(self, channels: int, filters: int, features: int, stride: int):
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = _convolution(channels, filters, 3, stride)
        self.norm2 = _norm(filters)
        self.conv2 = _convolution(filters, features, 3)
        reshapes = stride != 1 or channels != features
        self.shortcut = _convolution(channels, features, 1, stride) if reshapes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = functional.relu(self.norm2(self.conv1(y)), inplace=True)
        return self.conv2(y) + shortcut


def _convolution(channels: int, features: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, features, size, stride, padding=size // 2, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_NORM_EPSILON, momentum=_NORM_MOMENTUM)


def to_torch(variables: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Convert our variables, or a tree like their "params", to tensors by the names of a twin's `state_dict`.

    Kernels [height, width, in, out] become weights [out, in, height, width], and [in, out] becomes [out, in].
    """
    named = {}
    for collection, tree in variables.items():
        for path, leaf in _leaves(tree):
            weight = np.moveaxis(np.asarray(leaf), -1, 0)
            weight = np.moveaxis(weight, -1, 1) if path[-1] == "kernel" else weight
            named[".".join([*path[:-1], _LEAVES[collection, path[-1]]])] = torch.tensor(weight)
    return named


def from_torch(named: Mapping[str, torch.Tensor]) -> Tree:
    """Convert tensors by the names of a twin's parameters and buffers to a tree like our variables: arrays float32."""
    variables: Tree = {}
    for name, tensor in named.items():
        *path, leaf = name.split(".")
        if leaf == "num_batches_tracked":
            continue
        array = tensor.detach().cpu().numpy()
        is_kernel = leaf == "weight" and array.ndim > 1
        candidates = [key for key, value in _LEAVES.items() if value == leaf and (key[1] == "kernel") == is_kernel]
        ((collection, key),) = candidates
        node = variables.setdefault(collection, {})
        for part in path:
            node = node.setdefault(part, {})
        node[key] = np.moveaxis(np.moveaxis(array, 1, -1), 0, -1) if is_kernel else array
    return variables


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Return (path, leaf) of every leaf of nested dicts."""
    found = []
    for key, value in tree.items():
        found += _leaves(value, (*path, key)) if isinstance(value, Mapping) else [((*path, key), value)]
    return found


class TwinStep:
    """A local step of plain SGD in PyTorch, on batches that it draws from a data set in memory.

    Args:
      config: optimizer, batch size and precision, as in our local step.
      model: our module; its twin is trained.
      variables: our variables to start from; None for PyTorch's own initialisation.
      device: PyTorch's name of the device that holds images and network.
    """

    def __init__(
        self,
        config: Config,
        model: Network,
        dataset: Dataset,
        variables: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ):
        self._config, self._device = config, device
        self._padding, self._flip = dataset.crop_padding, dataset.flip
        self.network = Twin(model)
        if variables is not None:
            # Missing are only the counters of batches, which PyTorch does not use with a momentum.
            self.network.load_state_dict(to_torch(variables), strict=False)
        self.network = self.network.to(device, memory_format=torch.channels_last).train()
        self._images = torch.tensor(dataset.train_images, device=device)
        self._labels = torch.tensor(dataset.train_labels, dtype=torch.int64, device=device)
        mean, deviation = (torch.tensor(np.asarray(s), dtype=torch.float32) for s in dataset.channel_statistics)
        self._mean, self._deviation = mean.view(1, -1, 1, 1).to(device), deviation.view(1, -1, 1, 1).to(device)
        self._generator = torch.Generator(device).manual_seed(config.seed)
        self.optimizer = self._make_optimizer()
        self._loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = self.loss

    def compile(self) -> None:
        """Let torch.compile compile loss and gradients at the next step."""
        self._loss = torch.compile(self.loss)

    def _make_optimizer(self) -> torch.optim.SGD:
        settings, named = self._config.optimizer, dict(self.network.named_parameters())
        kernels = [parameter for parameter in named.values() if parameter.ndim > 1]
        others = [parameter for parameter in named.values() if parameter.ndim == 1]
        groups = [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, fused=True)

    def draw_order(self) -> torch.Tensor:
        """Draw an order of all training images, int64 [examples]."""
        return torch.randperm(len(self._labels), generator=self._generator, device=self._device)

    def run(self, order: torch.Tensor, steps: int) -> torch.Tensor:
        """Do this number of steps on the first batches of an order. Returns the last loss, a float32 scalar."""
        loss = torch.zeros(())
        for chosen in order.split(self._config.data.batch_size)[:steps]:
            corner, mirror = self._draw(len(chosen))
            loss = self.update(self.prepare(self._images[chosen], corner, mirror), self._labels[chosen])
        return loss

    def prepare(self, images: torch.Tensor, corner: torch.Tensor, mirror: torch.Tensor) -> torch.Tensor:
        """Crop, mirror and normalise a batch.

        Args:
          images: uint8 [batch, height, width, channels].
          corner, mirror: int64 [batch, 2] in [0, 2 * padding], and bool [batch].

        Returns:
          float32 [batch, channels, height, width], in channels-last memory.
        """
        _, height, width, _ = images.shape
        padded = functional.pad(images, (0, 0, self._padding, self._padding, self._padding, self._padding))
        rows = corner[:, :1] + torch.arange(height, device=self._device)
        columns = torch.arange(width, device=self._device)
        columns = corner[:, 1:] + torch.where(mirror[:, None], columns.flip(0), columns)
        examples = torch.arange(len(images), device=self._device)
        cut = padded[examples[:, None, None], rows[:, :, None], columns[:, None, :]]
        return (cut.permute(0, 3, 1, 2).float() - self._mean) / self._deviation

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Do one step on a prepared batch. Returns its loss, a float32 scalar."""
        loss = self._loss(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of a prepared batch against its smoothed labels; it is float32."""
        smoothing = self._config.optimizer.label_smoothing
        with torch.autocast(self._device, torch.bfloat16, enabled=self._config.precision == "bfloat16"):
            logits = self.network(images)
        logits = logits.float() if logits.dtype is torch.bfloat16 else logits
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    def _draw(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        corner = torch.randint(0, 2 * self._padding + 1, (batch, 2), generator=self._generator, device=self._device)
        chance = torch.rand(batch, generator=self._generator, device=self._device)
        return corner, (chance < 0.5) & self._flip
