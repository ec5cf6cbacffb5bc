"""Families of networks by name. None of them says a word about filter groups: tracing finds those."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
