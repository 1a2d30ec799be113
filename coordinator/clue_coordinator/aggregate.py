"""Combine the updates of devices that had forget samples into one for devices that had none.

Some devices may be hostile, or merely broken. With n updates that can be read and fit, of which fewer than n / 2 are
hostile, tensor by tensor (u_it is what device i adds to tensor t)::

    agree(i, j) = min(cos(u_i, u_j), min over t of cos(u_it, u_jt))   t: median over i of |u_it|^2 / |u_i|^2 >= 5 %
    kept        = { i : agree(i, j) >= agreement for more than n / 2 of all j, i itself among them }
    u'_it       = u_it * min(1, clip * median over kept of |u_jt| / |u_it|)
    w_i         = min(samples_i, samples_cap * median over kept of samples_j)
    patch_t     = sum over kept of w_i u'_it / sum over kept of w_i             (Flower's FedAvg)

Why that is sound: the changes that forgetting one class makes to one model point the same way, whatever images it
took (docs/federated.md has the cosines). If every two honest devices agree, no honest one is dropped, since they are
more than n / 2; and whoever is kept agrees, in every tensor that matters, with at least one honest device. What such a
device can still do is bounded by the clip in each tensor and by the cap on its weight; a tensor that most devices
leave alone stays as it is, since the median of its norms is 0. With n / 2 or more hostile devices that collude,
nothing can be told from the updates alone; the guard of every device that gets the patch remains.

Updates are sparse: memory is that of one tensor for all devices.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from clue_coordinator.errors import AggregationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clue.federated import Change, Update

    Floats = NDArray[np.floating[Any]]

# Tensors with less of the change do not vote: a bias of ten numbers is noise. The clip bounds them all the same.
_VOTING_ENERGY = 0.05


@dataclass(frozen=True)
class AggregationSettings:
    """How updates are combined.

    Attributes:
        min_devices: as many must be kept, >= 1. With fewer than three there is no majority, and the patch of one
            device alone is that device's update.
        agreement: least cosine at which two updates agree, in (0, 1).
        clip: largest norm of a tensor's change, in units of the median over the kept devices, >= 1.
        samples_cap: most samples that count for a device, in units of the median over the kept devices, >= 1.
        max_devices: updates taken, the first ones in the order of the devices' names; memory and time grow with them.
    """

    min_devices: int = 3
    agreement: float = 0.4
    clip: float = 1.5
    samples_cap: float = 2.0
    max_devices: int = 100

    def __post_init__(self) -> None:
        for name, fits in (
            ("min_devices", self.min_devices >= 1),
            ("agreement", 0 < self.agreement < 1),
            ("clip", self.clip >= 1),
            ("samples_cap", self.samples_cap >= 1),
            ("max_devices", self.max_devices >= self.min_devices),
        ):
            if not fits:
                raise AggregationError(f"{name} is {getattr(self, name)}, which is out of its range")


@dataclass(frozen=True)
class DeviceShare:
    """What became of one device's update.

    Attributes:
        outcome: ``used``, ``clipped`` (used, made shorter) or ``dropped``.
        reason: why it was clipped or dropped; empty otherwise.
        samples: what the device claims; 0 if the update could not be read.
        weight: its share of the patch, in [0, 1].
        norm: Euclidean norm of its change.
        support: number of devices that it agrees with, itself among them.
    """

    outcome: str
    reason: str = ""
    samples: int = 0
    weight: float = 0.0
    norm: float = 0.0
    support: int = 0


@dataclass(frozen=True)
class AggregationReport:
    """What became of every update, by device, and the settings."""

    devices: Mapping[str, DeviceShare]
    settings: AggregationSettings

    @property
    def used(self) -> tuple[str, ...]:
        """Devices whose update is part of the patch, sorted."""
        return tuple(sorted(name for name, share in self.devices.items() if share.outcome != "dropped"))

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        devices = {name: asdict(share) for name, share in self.devices.items()}
        return {"devices": devices, "settings": asdict(self.settings)}


def combine(
    updates: "Mapping[str, bytes | Update]",
    *,
    base: str,
    forget_class: str,
    settings: AggregationSettings | None = None,
) -> "tuple[Update, AggregationReport]":
    """Combine updates into a patch.

    Args:
        updates: by device name; bytes as they came, or updates that were read before.
        base: digest of the model that the patch is for; updates of other models are dropped.
        forget_class: the class that was asked for; updates of other classes are dropped.
        settings: how; None takes the defaults.

    Returns:
        The patch, and a report on every device.

    Raises:
        AggregationError: no majority of the devices agrees, or too few of them do; the message says what became of
            each.
    """
    settings = settings or AggregationSettings()
    shares: dict[str, DeviceShare] = {}
    fitting = dict(_read(updates, base, forget_class, settings, shares))
    _drop_odd_shapes(fitting, shares)
    names = sorted(fitting)
    if names:
        agreed = _agreement([fitting[name] for name in names], settings.agreement)
        for name, support in zip(names, agreed, strict=True):
            if 2 * support <= len(names):
                reason = f"agrees with {support} of {len(names)} devices, no majority"
                shares[name] = _share(fitting.pop(name), "dropped", reason, support=support)
            else:
                shares[name] = _share(fitting[name], "used", support=support)
    if len(fitting) < settings.min_devices or 2 * len(fitting) <= len(names):
        raise AggregationError(_refusal(shares, len(fitting), len(names), settings))
    weights = _weights(fitting, settings.samples_cap)
    bounds = _bounds(fitting, settings.clip)
    clipped = {name: _clip(update, bounds) for name, update in fitting.items()}
    patch = weighted_mean({name: update for name, (update, _) in clipped.items()}, weights)
    for name, (_, tensors) in clipped.items():
        outcome, reason = ("clipped", f"too large in {tensors} of its tensors") if tensors else ("used", "")
        share = weights[name] / sum(weights.values())
        shares[name] = _share(fitting[name], outcome, reason, weight=share, support=shares[name].support)
    return patch, AggregationReport(dict(sorted(shares.items())), settings)


def _read(
    updates: "Mapping[str, bytes | Update]",
    base: str,
    forget_class: str,
    settings: AggregationSettings,
    shares: dict[str, DeviceShare],
) -> "Iterator[tuple[str, Update]]":
    """The updates that can be read and are of the right model and class; ``shares`` gets the others."""
    from clue.errors import UpdateError
    from clue.federated import update_from_bytes

    taken = 0
    for name, given in sorted(updates.items(), key=lambda item: item[0]):
        if taken == settings.max_devices:
            shares[name] = DeviceShare("dropped", f"{settings.max_devices} updates are enough")
            continue
        try:
            update = update_from_bytes(given) if isinstance(given, bytes) else given
        except UpdateError as error:
            shares[name] = DeviceShare("dropped", str(error))
            continue
        if update.base != base:
            shares[name] = _share(update, "dropped", f"made from the model {update.base[:16]}, not {base[:16]}")
        elif update.forget_class != forget_class:
            shares[name] = _share(update, "dropped", f"forgets {update.forget_class[:80]!r}, not {forget_class!r}")
        elif update.norm() == 0:
            shares[name] = _share(update, "dropped", "changes nothing")
        else:
            taken += 1
            yield name, update


def _drop_odd_shapes(fitting: "dict[str, Update]", shares: dict[str, DeviceShare]) -> None:
    """Drop the updates in which a tensor has another shape than in most updates that change it."""
    from collections import Counter

    votes: dict[str, Counter[tuple[int, ...]]] = {}
    for update in fitting.values():
        for tensor, change in update.changes.items():
            votes.setdefault(tensor, Counter())[change.shape] += 1
    for name, update in list(fitting.items()):
        odd = [t for t, change in update.changes.items() if votes[t].most_common(1)[0][0] != change.shape]
        if odd:
            reason = f"its {odd[0][:80]!r} has the shape {update.changes[odd[0]].shape}, other devices' has not"
            shares[name] = _share(fitting.pop(name), "dropped", reason)


def _agreement(updates: "list[Update]", least: float) -> list[int]:
    """How many of the updates each one agrees with, itself among them."""
    import numpy as np

    energies = np.array([update.norm() ** 2 for update in updates])
    whole = np.zeros((len(updates), len(updates)))
    agree = np.ones_like(whole, dtype=bool)
    for tensor in _tensors(updates):
        block = _block(updates, tensor)[1].astype(np.float64)
        products = block @ block.T
        whole += products
        if np.median(products.diagonal() / energies) >= _VOTING_ENERGY:
            agree &= _alike(products, least)
    agree &= _alike(whole, least)
    np.fill_diagonal(agree, True)
    return [int(count) for count in agree.sum(1)]


def _alike(products: "Floats", least: float) -> "NDArray[np.bool_]":
    """Which of the vectors have a cosine of at least ``least``, by their inner products (n, n)."""
    import numpy as np

    lengths = np.sqrt(products.diagonal())
    scale = np.outer(lengths, lengths)
    # No change at all is like none.
    return np.asarray(products >= least * np.where(scale > 0, scale, np.inf))


def _weights(updates: "Mapping[str, Update]", cap: float) -> dict[str, float]:
    import numpy as np

    most = cap * float(np.median([update.samples for update in updates.values()]))
    return {name: min(float(update.samples), most) for name, update in updates.items()}


def _bounds(updates: "Mapping[str, Update]", clip: float) -> dict[str, float]:
    """The largest norm of each tensor's change."""
    import numpy as np

    every = list(updates.values())
    return {
        tensor: clip * float(np.median([_norm(update.changes.get(tensor)) for update in every]))
        for tensor in _tensors(every)
    }


def _clip(update: "Update", bounds: Mapping[str, float]) -> "tuple[Update, int]":
    """The update with no tensor above its bound, and how many tensors were."""
    from dataclasses import replace

    changes = dict(update.changes)
    long = [tensor for tensor, change in changes.items() if _norm(change) > bounds[tensor]]
    for tensor in long:
        change = changes[tensor]
        values = (change.values * (bounds[tensor] / _norm(change))).astype(change.values.dtype)
        changes[tensor] = replace(change, values=values)
    return replace(update, changes=changes), len(long)


def weighted_mean(updates: "Mapping[str, Update]", weights: Mapping[str, float]) -> "Update":
    """The mean of the updates by Flower's ``FedAvg``, with no defence of its own.

    Args:
        updates: of one model and class, with equal shapes; at least one.
        weights: of each, positive.
    """
    import numpy as np
    from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg

    from clue.federated import Change, Update

    names = sorted(updates)
    every = [updates[name] for name in names]
    records: dict[str, ArrayRecord] = {name: ArrayRecord() for name in names}
    places = {}
    for tensor in _tensors(every):
        places[tensor], block = _block(every, tensor)
        for name, row in zip(names, block, strict=True):
            records[name][tensor] = Array(row)
    replies = []
    for name in names:
        metrics = MetricRecord({"num-examples": float(weights[name])})
        # Without metadata a message asks for the Flower run it belongs to. There is none; FedAvg reads the content.
        nowhere = Metadata(0, "", 0, 0, "", "", 0.0, 1.0, "train")
        content = RecordDict({"arrays": records[name], "metrics": metrics})
        replies.append(Message(content=content, metadata=nowhere))  # type: ignore[call-overload]
    arrays, _ = FedAvg().aggregate_train(0, replies)
    assert arrays is not None  # noqa: S101  there is a reply
    changes = {}
    for tensor, array in arrays.items():
        values = np.asarray(array.numpy(), dtype=np.float32)
        moved = np.flatnonzero(values)
        if len(moved):
            shape = next(u.changes[tensor].shape for u in every if tensor in u.changes)
            changes[tensor] = Change(shape, places[tensor][moved], values[moved])
    if not changes:
        raise AggregationError("the updates change nothing in common: no tensor is changed by most of the devices")
    first = every[0]
    samples = min(2**31 - 1, sum(round(weights[name]) or 1 for name in names))
    return Update(first.base, first.forget_class, samples, changes, len(every))


def _tensors(updates: "list[Update]") -> list[str]:
    return sorted({tensor for update in updates for tensor in update.changes})


def _block(updates: "list[Update]", tensor: str) -> "tuple[NDArray[np.int32], NDArray[np.float32]]":
    """Positions (m,) of the tensor that any update changes, ascending, and the changes there, shape (n, m)."""
    import numpy as np

    found: list[Change | None] = [update.changes.get(tensor) for update in updates]
    places = np.unique(np.concatenate([change.indices for change in found if change is not None]))
    block = np.zeros((len(updates), len(places)), np.float32)
    for row, change in zip(block, found, strict=True):
        if change is not None:
            row[np.searchsorted(places, change.indices)] = change.values
    return places, block


def _norm(change: "Change | None") -> float:
    import numpy as np

    return 0.0 if change is None else float(np.sqrt(np.square(change.values, dtype=np.float64).sum()))


def _share(update: "Update", outcome: str, reason: str = "", *, weight: float = 0.0, support: int = 0) -> DeviceShare:
    return DeviceShare(outcome, reason, update.samples, weight, update.norm(), support)


def _refusal(shares: Mapping[str, DeviceShare], kept: int, fitting: int, settings: AggregationSettings) -> str:
    if 2 * kept <= fitting and fitting >= settings.min_devices:
        problem = f"the {fitting} updates do not agree: no majority points the same way"
    else:
        problem = f"{kept} usable update(s), {settings.min_devices} are needed"
    dropped = [f"{name}: {share.reason}" for name, share in sorted(shares.items()) if share.outcome == "dropped"]
    more = f"; and {len(dropped) - 5} more" if len(dropped) > 5 else ""
    return problem + (f" (dropped {'; '.join(dropped[:5])}{more})" if dropped else "")
