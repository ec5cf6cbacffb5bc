"""All settings, and how a command line becomes a validated config. Imports neither JAX nor NumPy."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
