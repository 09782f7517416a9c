"""Exceptions with messages for users."""


class DinError(Exception):
    """Invalid input: a file, a row, a field or a config key that can't be used.

    The message names what was found, what was expected and how to mend it. The commands print it
    without a traceback; library callers may catch it.
    """


class Diverged(DinError):
    """The loss or a score is NaN or infinite: weights saved since then are useless."""


class Damaged(DinError):
    """A checkpoint that can't be read, or that is not what was saved."""


class Interrupted(Exception):
    """A signal asked to stop, and the state has been saved; the message says how to continue.

    Attributes:
      signum: the signal's number.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum
