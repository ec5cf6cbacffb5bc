"""The look of figures is the program's, whatever the user's matplotlib is set to."""

import matplotlib

from loft_jax.report.chart import style


def test_a_users_settings_change_no_figure_and_stay_as_they_are():
    with style():
        ours = dict(matplotlib.rcParams)
    with matplotlib.rc_context(
        {"font.size": 30, "lines.dash_joinstyle": "miter", "figure.dpi": 17, "axes.grid": False}
    ):
        with style():
            assert {key: value for key, value in matplotlib.rcParams.items() if ours[key] != value} == {}
        assert matplotlib.rcParams["font.size"] == 30
