"""Memory of a device in training: what stays on it, and the largest of a round's compiled programs.

As the compiler plans it: its own measure of temporary space, which backends fill differently. Left out is what takes
little: drawing GPipe's batches, and the moment between a program's end and the release of what it read.
"""

from dataclasses import dataclass

from loft_jax.config import Config
from loft_jax.data import Facts
from loft_jax.devices import STEPS_AHEAD


@dataclass(frozen=True)
class PeakMemory:
    """Bytes on the device that holds most, at the worst moment of a round.

    Attributes:
      resident: state, training data, and what workers or micro-batches have left there.
      program: temporary space and new results of the program that runs then.
      name: of that program.
      grows: whether that program takes more memory for a larger batch.
    """

    resident: int
    program: int
    name: str
    grows: bool = True

    @property
    def total(self) -> int:
        """Bytes of both."""
        return self.resident + self.program


def data_bytes(facts: Facts, config: Config, devices: int) -> int:
    """Count images and labels on each device; of streamed ones the batch in work, and those on their way."""
    batches = (1 + STEPS_AHEAD) * config.data.batch_size // config.mesh.data
    return facts.device_bytes(devices, batches)
