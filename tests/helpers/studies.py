"""Studies for tests: the keys of a small one, and a directory in which stand-ins do its jobs."""

import copy

STUDY = {
    "common": {"model": {"width": 4}, "train": {"rounds": 4}},
    "settings": {"loft4": {"loft": {"workers": 4}}, "sgd": {"loft": {"workers": 1}}},
    "seeds": [0, 1],
    "steps": {
        "speed": {"kind": "bench", "seconds": 10},
        "pretrain": {"kind": "train", "seconds": 30, "seconds_of": {"sgd": 20}},
        "tickets": {"kind": "tickets", "seconds": 5, "ratios": [0.8, 0.5]},
        "at80": {"kind": "retrain", "seconds": 40, "ratios": [0.8], "modes": ["rewind", "random"]},
    },
}


def changed(**keys):
    """STUDY with dotted keys (dots as double underscores) set, or taken out where the value is None."""
    tree = copy.deepcopy(STUDY)
    for key, value in keys.items():
        *sections, leaf = key.split("__")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        if value is None:
            place.pop(leaf, None)
        else:
            place[leaf] = value
    return tree
