"""Errors of the agent. Each message is one line for the person who meets it."""


class AgentError(Exception):
    """Base of all errors of this package; the command line shows it and exits with 1."""


class ConfigError(AgentError):
    """agent.toml is missing, unreadable, or says something impossible."""


class EnrolmentError(AgentError):
    """The coordinator did not let the device in, or is not the one that the token names."""

    def __init__(self, line: str, *, refused: bool = False) -> None:
        super().__init__(line)
        # The coordinator said no, and did nothing.
        self.refused = refused


class StoreError(AgentError):
    """The model store is missing or no slot in it holds a whole model."""


class JournalWriteError(AgentError):
    """The journal cannot be written: the disk is full, read-only or failing. Nothing was recorded."""


class SealError(AgentError):
    """A sealed file is damaged, or its key was destroyed."""


class VaultError(AgentError):
    """The vault of samples cannot be opened, read or written, or a class in it is just being erased."""


class SampleRefusedError(AgentError, ValueError):
    """What was offered as a sample is no usable image, or its class must not be stored."""


class RequestRejectedError(AgentError):
    """A request must not be worked on; carries the reason that goes into the receipt."""

    def __init__(self, reason: int, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class RequestHeldError(AgentError):
    """A request cannot be judged yet: nothing is decided, and it is judged anew when it is delivered again.

    Carries what it waits for, in a few words (``stage``) and in one line (``detail``).
    """

    def __init__(self, stage: str, detail: str) -> None:
        super().__init__(detail)
        self.stage = stage
        self.detail = detail


class JobFailedError(AgentError):
    """A job ended without a model that may be used; carries the reason that goes into the receipt."""

    def __init__(self, reason: int, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
