"""The one exception for what a user can put right.

Launches print its message as one line and exit with code 2.
"""


class UserError(ValueError):
    """Wrong input: flags, data, files, nodes.

    The message names the thing and the way out, on one line.
    """
