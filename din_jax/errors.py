"""The exceptions that a user of the commands is meant to read."""


class DinError(Exception):
    """Bad input: a file, a row, a field or a config key that can't be used.

    The message names what was found, what was expected and how to mend it. The commands print it
    alone, without a traceback; library callers may catch it.
    """


class Diverged(DinError):
    """The loss is no longer a number: no weights that were saved since are worth anything."""


class Interrupted(Exception):
    """A signal asked to stop and the work is saved; the message says how to go on.

    Attributes:
      signum: the signal.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum
