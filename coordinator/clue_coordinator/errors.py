"""Errors of the coordinator. Each message is one line for the person who meets it."""


class CoordinatorError(Exception):
    """Base of all errors of this package; the command line shows it and exits with 1."""


class UsageError(CoordinatorError):
    """What was asked for does not exist or makes no sense; the command line exits with 2."""


class ConfigError(CoordinatorError):
    """The home folder or coordinator.toml is missing or wrong."""


class ConflictError(CoordinatorError):
    """The thing exists already, or is not in a state in which this can be done."""


class ReceiptError(CoordinatorError):
    """A device's answer is not a receipt of that device for that request.

    ``kind`` says why in one word: ``signature``, ``unreadable``, or ``content``.
    """

    def __init__(self, message: str, kind: str = "content") -> None:
        super().__init__(message)
        self.kind = kind


class FlowerError(CoordinatorError):
    """A Flower command failed."""


class LedgerVersionError(CoordinatorError):
    """The ledger is newer than this software, or the database holds something else."""


class BackupError(CoordinatorError):
    """A backup cannot be written, or a file is not a whole backup that this software can read."""


class AggregationError(CoordinatorError):
    """The devices' updates cannot be combined into one that a majority of them supports."""


class UnavailableError(CoordinatorError):
    """The coordinator does not answer."""


class LogDamagedError(CoordinatorError):
    """The transparency log in the ledger is not what was appended and signed."""


class WrongTokenError(CoordinatorError):
    """No invitation has this secret."""


class RootRefusedError(ConflictError):
    """A root that does not follow the newest one, or that too few of its holders have signed."""


class ApprovalError(ConflictError):
    """A signature that does not count as an approval: of a key that may not approve, or over another document."""
