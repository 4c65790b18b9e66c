"""Errors of data sets."""

from vmoe_prc.errors import UserError


class DatasetError(UserError, ValueError):
    """Files that no data set can be made from; its text is one line for the user."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
