"""LoFT in JAX/Flax: filter-wise distributed pretraining of CNNs that finds lottery tickets (arXiv 2210.16169)."""

import lazy_loader

# Imports are lazy: `python -m loft_jax.train` imports this file first, and must report a typo before JAX is loaded.
# __init__.pyi lists the names and their modules; type checkers read it too. Every package in here does the same.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
__all__ += ["__version__"]
