"""How tests read settings, and what was said when they were refused."""

import pytest

from loft_jax.config.command_line import CommandLine
from loft_jax.errors import UserError


def parse(*argv):
    return CommandLine("prog", "description").parse([str(a) for a in argv])[1]


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)
