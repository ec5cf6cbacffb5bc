"""The devices and processes of a run, and how a loop of steps runs on the devices."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
