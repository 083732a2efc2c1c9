"""The ways in which a job ends that are not bugs."""


class UserError(Exception):
    """Wrong usage or input: one line that says what was received, where, and what to do (exit status 2)."""


class JobFailed(Exception):
    """The job cannot go on, for a reason that the message tells (exit status 1)."""


class GateNotMet(Exception):
    """A quality gate was not met (exit status 3). `result` is still printed as the job's last line."""

    def __init__(self, message: str, result: dict[str, object]) -> None:
        super().__init__(message)
        self.result = result
