"""The one exception for what a user can cause and mend.

Scripts print its message without a traceback and exit with its code; anything else is a bug and keeps its traceback.
"""


class UserError(Exception):
    """One line that names the file, the value and the remedy.

    `exit_code` is 1 for a failure and 2 for a usage error, as argparse has it.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
