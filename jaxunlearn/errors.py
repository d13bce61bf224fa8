"""The one exception that means: the user's input is wrong; and other errors in one line."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with status 2.
    """


def one_line(error: Exception) -> str:
    """What an error of somebody else's says, for a message of ours."""
    return " ".join(str(error).split()) or type(error).__name__
