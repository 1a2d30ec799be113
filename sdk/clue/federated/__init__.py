"""What one device's forgetting changed, in a form that another device with the same model can apply.

A device with forget samples unlearns as always, and makes an :class:`Update` from its model before and after.
Updates of several devices are combined elsewhere into one, which a device without samples applies::

    update = make_update(before, result.model, "bird", samples=result.report.samples)
    data = update_to_bytes(update)                                            # leaves the device
    patched = apply_update(clue.load_bundle("model/"), update_from_bytes(data))  # on another device

An update is the difference of the weights at the positions that changed, no more; it names the model it belongs to by
digest and fits no other. Reading, writing and combining need numpy only; torch is loaded by :func:`make_update` and
:func:`apply_update`. docs/federated.md says what an update reveals.
"""

from clue.federated._bundles import apply_update, make_update
from clue.federated._update import Change, Update
from clue.federated._wire import MAX_BYTES, update_from_bytes, update_to_bytes

__all__ = ["MAX_BYTES", "Change", "Update", "apply_update", "make_update", "update_from_bytes", "update_to_bytes"]
