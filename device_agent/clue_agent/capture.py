"""For apps: hand a frame to the device as a sample, without a file in between::

capture = Capture("/home/pi/.clue/agent")
capture.add("Zoë", frame)        # uint8 array (height, width, 3), Pillow image, or a PNG or JPEG file's bytes
"""

from collections.abc import Callable, Collection
from pathlib import Path

from clue_agent.errors import SampleRefusedError, StoreError
from clue_agent.images import Picture, encode
from clue_agent.sealed import KeyRing
from clue_agent.store import ModelStore
from clue_agent.vault import Outcome, Vault

Names = Callable[[], Collection[str]] | Collection[str]


class Capture:
    """Adds samples to the vault of the agent at ``home``, alongside the daemon; safe in several threads.

    The picture is encoded and encrypted in memory: no file system ever sees it in the clear.

    Args:
        home: the agent's home folder; the app runs as the user that owns it.
        forgotten: classes of which nothing is stored, or a function that returns them. Without it, what the
            model in use has forgotten, asked anew for every picture.
        ring: where the keys are; without it ``home/keys``.

    Raises:
        VaultError: the vault cannot be opened.
    """

    def __init__(self, home: str | Path, forgotten: Names | None = None, ring: KeyRing | None = None) -> None:
        home = Path(home)
        self._ring = ring or KeyRing(home / "keys")
        self._vault = Vault(home / "vault", self._ring)
        self._store = ModelStore(home / "model", self._ring)
        self._forgotten = forgotten

    def add(self, name: str, image: Picture) -> Outcome:
        """Offer one picture of the class ``name``; sealed and on disk when this returns ADDED.

        Raises:
            SampleRefusedError: it is no usable picture, or the class is forgotten.
            VaultError: the class is being erased, or the storage failed.
        """
        return self._vault.add(name, encode(image), refused=self._refused)

    def _refused(self) -> Collection[str]:
        if self._forgotten is None:
            try:
                return self._store.spec()[0].forgotten
            except StoreError as error:
                # Who cannot say what is forgotten stores nothing.
                raise SampleRefusedError(f"no sample is stored while there is no model: {error}") from None
        return self._forgotten() if callable(self._forgotten) else self._forgotten
