"""The one exception that a user of the commands is meant to read."""


class DinError(Exception):
    """Bad input: a file, a row, a field or a config key that can't be used.

    The message names what was found, what was expected and how to mend it. The commands print it
    alone, without a traceback; library callers may catch it.
    """
