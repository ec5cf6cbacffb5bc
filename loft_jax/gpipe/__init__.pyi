from .cuts import boundary_floats as boundary_floats, check_cuts as check_cuts
from .pipeline import GPipe as GPipe
