"""Search tickets in a run's snapshots: python -m loft_jax.tickets"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
