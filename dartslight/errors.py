"""The one exception that a user's mistake raises; the command line turns it into one sentence and exit code 2."""


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one sentence for a person: what is wrong, what is allowed, what to do.
    """


def check_least(least: float, **values: float | None) -> None:
    """Checks that numbers are not too small; None passes.

    Args:
        least: The smallest number that is allowed.
        values: The numbers by the names that the user knows them by.

    Raises:
        InputError: If one is smaller, or is not a number.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise InputError(f"{name} is {value}, but it must be at least {least}; give a larger number.")
