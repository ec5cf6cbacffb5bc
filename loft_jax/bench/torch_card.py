"""Full steps of the PyTorch twin, compiled by torch.compile: what a process of its own runs."""

import time

from loft_jax.config import Config


def compiled_steps(config: Config, examples: int, repetitions: int, device: str) -> tuple[float, list[float]] | None:
    """Compile the twin's step, and time rounds of steps.

    Args:
      config: settings of a round of plain SGD.
      examples: images of the random data set.
      repetitions: the most repetitions.
      device: cuda or cpu.

    Returns:
      Seconds until it was compiled, and the seconds of `loft.local_steps` steps, of each repetition; None if PyTorch
      does not see such a device.
    """
    import torch

    from loft_jax.bench.accelerator import repeat
    from loft_jax.bench.material import random_images, random_variables
    from loft_jax.bench.twin import TwinStep
    from loft_jax.models import make_model

    if device == "cuda" and not torch.cuda.is_available():
        return None
    start = time.perf_counter()
    # As JAX does by default: products of float32 in TF32, and convolutions chosen by trying.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    dataset = random_images(examples)
    model = make_model(config, dataset.num_classes, dataset.image_shape)
    step = TwinStep(config, model, dataset, random_variables(model, dataset.image_shape), device)
    step.compile()

    def steps() -> None:
        step.run(step.draw_order(), config.loft.local_steps)
        if device == "cuda":
            torch.cuda.synchronize()

    steps()
    return time.perf_counter() - start, repeat(steps, repetitions)
