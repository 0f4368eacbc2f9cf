"""The one exception that speaks to the user."""


class UserError(Exception):
    """Something that the user can mend: the message names the file, key or case, what was expected, and what to do.

    The command line prints the message alone, without a traceback, and exits with status 1.
    """
