"""What the settings of training change in a round, and which of them a model refuses."""

from functools import cache

import pytest
from helpers.tiny import MODEL, Run, config, flat
from helpers.two_layers import TwoLayers

from loft_jax.loft.split import split_groups

OF_MODEL = [
    {"precision": "bfloat16"},
    {"loft__workers": 2},
    {"loft__partition": "all"},
    {"loft__partition": "none"},
    {"loft__rescale": True},
]
# The others do not depend on the model, and TwoLayers compiles in half the time.
OF_TRAINING = [
    {"seed": 1},
    {"data__batch_size": 5},
    {"data__split": "disjoint"},
    {"data__augment": False},
    {"loft__local_steps": 2},
    {"loft__momentum": "reset"},
    {"optimizer__learning_rate": 0.04},
    {"optimizer__momentum": 0.5},
    {"optimizer__weight_decay": 0.01},
    {"optimizer__schedule": "step"},
    {"optimizer__schedule": "constant"},
    {"optimizer__warmup_steps": 4},
    {"optimizer__label_smoothing": 0.1},
]
CHANGES = [(MODEL, change) for change in OF_MODEL] + [(TwoLayers(), change) for change in OF_TRAINING]


@cache
def params_after_two_rounds(model, **change):
    return flat(Run(config(mesh__worker=1, **change), model=model).rounds(2)["params"])


@pytest.mark.full
@pytest.mark.parametrize(("model", "change"), CHANGES, ids=[str(*change.items()) for _, change in CHANGES])
def test_every_setting_changes_the_result(model, change):
    one, other = params_after_two_rounds(model), params_after_two_rounds(model, **change)
    assert any((one[path] != other[path]).any() for path in one)


def test_momentum_reset_carries_none():
    state = Run(config(loft__momentum="reset")).rounds(1)
    assert "momentum" not in state


@pytest.mark.parametrize(("workers", "hint"), [(3, "try 2"), (16, "try 8"), (5, "try 4")])
def test_workers_that_do_not_divide_a_width_are_refused(workers, hint):
    with pytest.raises(
        ValueError, match=rf"loft\.workers={workers}: must divide every partitioned width \(8\); {hint}"
    ):
        split_groups(MODEL, config(loft__workers=workers))
