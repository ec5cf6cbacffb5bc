from .catalogue import FAMILIES as FAMILIES, Family as Family, create_family as create_family
