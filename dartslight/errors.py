"""The one exception that a user's mistake raises; the command line turns it into one sentence and exit code 2."""


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one sentence for a person: what is wrong, what is allowed, what to do.
    """
