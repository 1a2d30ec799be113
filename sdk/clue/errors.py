"""Every error the SDK raises on purpose. All derive from :class:`ClueError`.

The message of each is one line that says what is wrong and what to do about it.
"""


class ClueError(Exception):
    """Base of all errors of this package."""


class BundleError(ClueError):
    """A model bundle is missing, damaged, or describes something that cannot be built."""


class DataError(ClueError):
    """Images are missing, unreadable, or not what the model expects."""


class ForgetInputError(ClueError):
    """The forget request itself makes no sense: empty forget set, unknown class, wrong labels."""


class UnknownClassError(ForgetInputError):
    """The model has no class of that name."""


class ForgetDivergedError(ClueError):
    """Unlearning produced a non-finite loss or weight; no model is returned."""


class UnknownMethodError(ClueError):
    """No unlearning method is registered under that name."""


class HyperparameterError(ClueError):
    """A hyper-parameter is outside its range or does not exist."""


class TrainError(ClueError):
    """Training cannot start, continue from its checkpoint, or go on: its loss became non-finite."""


class UpdateError(ClueError):
    """A federated update is damaged or malformed, or does not belong to the model at hand."""
