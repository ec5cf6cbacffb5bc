"""Files that are written whole or not at all, the arrays in them, and what is kept between runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
