"""What can be wrong with a transparency log, one class each. Each message is one line for the person who meets it."""

from clue_protocol.errors import ProtocolError


class LogError(ProtocolError):
    """Base of all errors of the transparency log."""


class LeafError(LogError):
    """The bytes are not a leaf, or a leaf cannot say this."""


class NoteKeyError(LogError):
    """The text is not a verifier key, or the keys cannot be used together."""


class NoteError(LogError):
    """The text is not a signed note."""


class CheckpointError(LogError):
    """A signed note, but its text is not a checkpoint."""


class OriginError(LogError):
    """A checkpoint of another log."""


class LogSignatureError(LogError):
    """The log's key has not signed the checkpoint."""


class CosignatureError(LogError):
    """A line that names a known witness does not carry its signature."""


class WitnessThresholdError(LogError):
    """Too few known witnesses have signed the checkpoint."""


class FrozenError(LogError):
    """No recent word of the witnesses: the checkpoint may be an old one that somebody keeps showing."""


class ProofError(LogError):
    """The data is not a proof of this form, or it speaks of another tree size."""


class InclusionError(LogError):
    """The leaf is not at this place of the log with this root."""


class RollbackError(LogError):
    """The newer checkpoint has fewer leaves than the older one."""


class ForkError(LogError):
    """Two checkpoints of one size with different roots: somebody was shown another log."""


class ConsistencyError(LogError):
    """The newer log is not the older one with leaves appended."""
