"""A round of LoFT: partition, local steps on compact sub-CNNs, and sync."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
