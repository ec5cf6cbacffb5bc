"""Every test of this folder runs on a GPU under `-m gpu`, and is rehearsed on the CPU in the default run."""

import jax
import pytest


@pytest.fixture(scope="module", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def platform(request):
    """Platform of the programs under test: "cpu" or "gpu". Float32 is multiplied as float32, not as TF32."""
    if request.param == "gpu" and jax.default_backend() != "gpu":
        pytest.skip(
            f"no GPU: JAX has {', '.join(map(str, jax.devices()))}; this needs an NVIDIA driver, the extra cuda12 or "
            "cuda13, and python -m pytest -m gpu"
        )
    with jax.default_matmul_precision("highest"):
        yield request.param
