"""The ways a command stops on purpose; anything else that is raised is a bug and keeps its traceback."""


class UserError(Exception):
    """What the user asked for cannot be done; the message says what to change. Commands exit with code 2."""


class RunStopped(Exception):  # noqa: N818
    """The run cannot go on, for a reason found while it ran. Commands exit with code 1."""


class Preempted(Exception):  # noqa: N818
    """The run was asked to leave, and has saved what it had; the same command goes on. Commands exit with code 0."""


def exit_code(stop: Exception) -> int:
    """Of a command that one of these has stopped."""
    return {UserError: 2, RunStopped: 1, Preempted: 0}[type(stop)]
