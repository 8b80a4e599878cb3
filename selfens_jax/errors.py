"""The one exception that a user can cause."""


class UserError(ValueError):
    """A mistake in a flag, a file or an argument, said in one line that tells what to do.

    Scripts print its message and exit with status 1; anything else is a bug and keeps its
    traceback.
    """
