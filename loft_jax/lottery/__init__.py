"""Prune a network iteratively, as in the lottery ticket hypothesis: python -m loft_jax.lottery"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
