"""The one exception for what a user can put right: launches print its message as one line and exit
with code 2.
"""


class UserError(ValueError):
    """Wrong input (flags, data, files, nodes): the message names the thing and the way out, on one
    line.
    """
