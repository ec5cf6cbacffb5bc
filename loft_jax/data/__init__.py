"""Image-classification data sets by name: arrays in memory, or streamed from files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
