"""What a run's devices and processes are, and how a loop of steps runs on them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
