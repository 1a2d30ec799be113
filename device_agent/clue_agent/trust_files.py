"""``home/trust``: the root that the device has accepted, and the highest of everything it has seen.

Three files, each replaced atomically and in this order: ``before.dsse`` (the root that is being left), ``root.dsse``
and ``state.json``. A power cut anywhere between leaves the old root with its state, or the new root with what it takes
to bring the state to it. What is damaged is an error and is never begun anew by itself.
"""

from pathlib import Path

from clue_protocol.documents import Trust
from clue_protocol.errors import ProtocolError
from clue_protocol.files import private_folder, write_atomic
from clue_protocol.trust import ROOT_TYPE, TrustedRoot, TrustState, load_state, pin_root, save_state
from clue_protocol.trust.envelopes import payload_digest, read_envelope
from clue_protocol.trust.errors import RootForkError, RootInstallationError, RootRollbackError, TrustStateError

_MODE = 0o600


def pinned_root(trust: Trust) -> TrustedRoot:
    """The root of a trust document, whose owner handed it over: its digest there is the pin.

    Raises:
        TrustError, EnvelopeError: it is not a root, or not signed by its own holders.
    """
    return pin_root(trust.root, payload_digest(read_envelope(trust.root, ROOT_TYPE)))


class TrustFiles:
    """The files in one folder. One process may write them: the one that holds the home's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = folder / "root.dsse"
        self._before = folder / "before.dsse"
        self._state = folder / "state.json"

    def exist(self) -> bool:
        """Was anything ever pinned here? True also if only a part is left of it."""
        return self._root.exists() or self._state.exists()

    def load(self) -> tuple[TrustedRoot, TrustState]:
        """Root and state; the latter is not ahead of the former, nor behind. Nothing is written.

        Whoever goes on to write has to store that state first.

        Raises:
            TrustStateError: a file is missing or damaged, or they do not belong together.
        """
        root, state = self._read(self._root), load_state(self._state)
        try:
            state.check_root(root)
            if root.root.version > state.root_version:
                # The power went after the root was written and before the state was.
                before = self._read(self._before)
                if before.root.version > state.root_version:
                    raise RootForkError("the root before it is not the one that was accepted")
                state.check_root(before)
                state = state.after_root(before, root)
        except (RootRollbackError, RootForkError) as error:
            raise TrustStateError(f"{error}: {self.folder}. Restore it, or enrol the device anew") from None
        return root, state

    def save_state(self, state: TrustState) -> None:
        """Write the state; TrustStateError if it cannot be written or the stored one is damaged or knows more."""
        save_state(self._state, state)

    def save(self, old: TrustedRoot, new: TrustedRoot, state: TrustState) -> None:
        """Go from one root to the next; ``state`` speaks of the latter already.

        Raises:
            TrustStateError: the disk cannot be written; what counts is still whole.
        """
        self._write(self._before, old.envelope)
        self._write(self._root, new.envelope)
        save_state(self._state, state)

    def begin(self, root: TrustedRoot) -> None:
        """Pin the first root; whatever is there is given up."""
        try:
            # The state first: an old one must never stand beside a root of another installation.
            for path in (self._state, self._before, self._root):
                path.unlink(missing_ok=True)
            private_folder(self.folder)
        except OSError as error:
            raise TrustStateError(f"cannot write {self.folder}: {error.strerror}") from None
        self._write(self._root, root.envelope)
        save_state(self._state, TrustState.first(root))

    def advance(self, root: TrustedRoot) -> None:
        """A trust document was given again: go forward to its root, or stay.

        Raises:
            RootInstallationError, RootRollbackError, RootForkError: that would not be forward.
            TrustStateError: what is here is damaged.
        """
        have, state = self.load()
        save_state(self._state, state)
        if root.root.installation != have.root.installation:
            raise RootInstallationError(
                f"the root is of installation {root.root.installation[:12]}, this device belongs to "
                f"{have.root.installation[:12]}"
            )
        if root.root.version < have.root.version:
            raise RootRollbackError(
                f"the root has version {root.root.version}, this device has version {have.root.version} already"
            )
        if root.root.version > have.root.version:
            self.save(have, root, state.after_root(have, root))
        elif root.digest != have.digest:
            raise RootForkError(f"the root of version {root.root.version} is another one than this device has")

    def _read(self, path: Path) -> TrustedRoot:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise TrustStateError(
                f"cannot read the stored root {path}: {error.strerror}. Restore it, or enrol the device anew"
            ) from None
        try:
            return pin_root(data, payload_digest(read_envelope(data, ROOT_TYPE)))
        except ProtocolError as error:
            raise TrustStateError(
                f"the stored root is damaged ({error}): {path}. Restore it, or enrol the device anew"
            ) from None

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        try:
            write_atomic(path, data, _MODE)
        except OSError as error:
            raise TrustStateError(f"cannot write {path}: {error.strerror}") from None
