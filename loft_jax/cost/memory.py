"""Memory of a device in training: what stays on it, and the largest of a round's compiled programs.

Temporary space is what the compiler reserves; backends use it in different ways. What takes little memory is left out:
drawing GPipe's batches, and the moment between a program's end and the release of what it read.
"""

from dataclasses import dataclass

from loft_jax.config import Config
from loft_jax.data import Facts
from loft_jax.devices import STEPS_AHEAD


@dataclass(frozen=True)
class PeakMemory:
    """Bytes on the device that holds most, at the moment of a round when it holds most.

    Attributes:
      resident: state, training data, and what workers or micro-batches left there.
      program: temporary space and new results of the program that runs then.
      name: name of that program.
      grows: whether that program takes more memory for a larger batch.
    """

    resident: int
    program: int
    name: str
    grows: bool = True

    @property
    def total(self) -> int:
        """Bytes of both together."""
        return self.resident + self.program


def data_bytes(facts: Facts, config: Config, devices: int) -> int:
    """Count the bytes of images and labels on each device; if streamed, those of the current and the next batches."""
    batches = (1 + STEPS_AHEAD) * config.data.batch_size // config.mesh.data
    return facts.device_bytes(devices, batches)
