"""A round of LoFT: partition, local steps on compact sub-CNNs, and the sync that sums them up."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
