"""From two models to an update, and from a model and an update to a model. torch is loaded on the first call."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from clue.errors import UpdateError
from clue.federated._update import Change, Update

if TYPE_CHECKING:
    from torch import nn

    from clue.bundle import ModelBundle


def make_update(before: "ModelBundle", after: "nn.Module", forget_class: str, *, samples: int) -> Update:
    """The difference of the weights, ``after - before``, where there is one.

    Args:
        before: the bundle that the class was forgotten in.
        after: the model that came out; not changed.
        forget_class: name of the class.
        samples: forget images that it took.

    Raises:
        UnknownClassError: the model has no such class.
        UpdateError: the models are of different shape, nothing changed, a change is not finite, or the method changed a
            buffer: statistics such as batch-norm's are averages over the device's images, and are not given away.
    """
    before.spec.class_index(forget_class)
    old, new = before.model.state_dict(), after.state_dict()
    if old.keys() != new.keys() or any(old[name].shape != new[name].shape for name in old):
        raise UpdateError("the models before and after are not of the same architecture")
    parameters = {name for name, _ in before.model.named_parameters(remove_duplicate=False)}
    changes = {}
    for name, tensor in new.items():
        if tensor.equal(old[name].to(tensor.device)):
            continue
        if name not in parameters or not tensor.is_floating_point():
            raise UpdateError(f"the method changed {name}, which is no weight: such statistics are not shared")
        moved = (tensor.detach().float().cpu() - old[name].detach().float().cpu()).numpy().reshape(-1)
        indices = np.flatnonzero(moved).astype(np.int32)
        if len(indices):
            changes[name] = Change(tuple(tensor.shape), indices, moved[indices])
    if not changes:
        raise UpdateError("nothing changed between the two models: there is no update to make")
    return Update(before.digest, forget_class, samples, changes)


def apply_update(bundle: "ModelBundle", update: Update) -> "ModelBundle":
    """A new bundle with the update added to its weights and the class recorded as forgotten; ``bundle`` is not changed.

    The digest and the spec are those that :func:`clue.save_bundle` would write.

    Raises:
        UnknownClassError: the model has no such class.
        UpdateError: the update belongs to another model, names a tensor that is no weight of this one or has
            another shape, or a weight would not be finite.
    """
    import copy
    from dataclasses import replace

    import torch

    from clue.bundle import ModelBundle, bundle_to_bytes, parameters_are_finite

    if update.base != bundle.digest:
        raise UpdateError(
            f"the update belongs to the model {update.base[:16]}, this one is {bundle.digest[:16]}: "
            "it can only be applied to the model it was made from"
        )
    spec = bundle.spec.with_forgotten(update.forget_class)
    model = copy.deepcopy(bundle.model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, change in update.changes.items():
        known = parameters.get(name)
        if known is None or not known.is_floating_point():
            raise UpdateError(f"the update changes {name[:80]!r}, which is no weight of the model")
        if tuple(known.shape) != change.shape:
            raise UpdateError(f"the update's {name} has the shape {change.shape}, the model's {tuple(known.shape)}")
    written: set[int] = set()
    with torch.no_grad():
        for name, change in update.changes.items():
            parameter = parameters[name]
            # Tied weights have two names and one memory.
            if parameter.data_ptr() not in written:
                written.add(parameter.data_ptr())
                parameter.add_(torch.from_numpy(change.dense()).to(parameter))
    if not parameters_are_finite(model):
        raise UpdateError("the model would hold a weight that is not finite after the update")
    text, weights = bundle_to_bytes(model, spec)
    spec = replace(spec, weights_sha256=hashlib.sha256(weights).hexdigest())
    return ModelBundle(model.eval(), spec, hashlib.sha256(text).hexdigest())
