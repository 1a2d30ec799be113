"""Leaves in the ledger, and the tree over them.

The tree is kept as c2sp.org/tlog-tiles divides it: the hash of every leaf, of every 256 leaves, of every 256 of those,
and so on. Nothing that is stored ever changes. What lies between, tlog-scales computes from at most 256 hashes.
"""

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.orm import Session
from tlog_scales import tiles
from tlog_scales.reader import TilesReader
from tlog_scales.utils import sha256

from clue_coordinator.errors import LogDamagedError
from clue_coordinator.models import LogLeaf, LogNode
from clue_protocol.tlog import ConsistencyProof, InclusionProof, Leaf, ProofError

TILE = 256


def append(session: Session, kind: str, document: bytes, reference: str) -> int:
    """Append the leaf of a signed document in the transaction of ``session``; returns its index.

    The session must be a writing one of the ledger, which runs alone. One row is written, every 256 leaves one more.

    Args:
        session: of the event's own transaction, so that there is never the one without the other.
        kind: one of ``clue_protocol.tlog.KINDS``.
        document: the envelope, byte for byte.
        reference: where it is, such as the request's id.

    Raises:
        LeafError: there is no such leaf.
    """
    leaf = Leaf.of(kind, document, reference)
    # Not through the session: that would write out what its owner has not finished yet.
    connection = session.connection()
    index = _size(connection)
    values = {"kind": leaf.kind, "digest": leaf.digest, "reference": leaf.reference}
    connection.execute(insert(LogLeaf).values(id=index, hash=tiles.leaf_hash(leaf.to_bytes()), **values))
    size, level = index + 1, 1
    while size % TILE**level == 0:
        position = size // TILE**level - 1
        node = Tree(session).node(level, position)
        connection.execute(insert(LogNode).values(level=level, position=position, hash=node))
        level += 1
    return index


def size_of(session: Session) -> int:
    """Number of leaves."""
    return _size(session.connection())


def leaf_at(session: Session, index: int) -> Leaf:
    """The leaf number ``index``, from 0; ProofError if there is none."""
    row = session.get(LogLeaf, index)
    if row is None:
        raise ProofError(f"the log has no leaf {index}")
    return Leaf(row.kind, row.digest, row.reference)


def indices_of(session: Session, reference: str) -> list[int]:
    """Indices of the leaves with this reference, oldest first."""
    return list(session.scalars(select(LogLeaf.id).where(LogLeaf.reference == reference).order_by(LogLeaf.id)))


def index_of(session: Session, document: bytes, kind: str) -> int | None:
    """Index of the first leaf of a signed document, None if it is not in the log."""
    digest = Leaf.of(kind, document, "-").digest
    return session.scalar(select(func.min(LogLeaf.id)).where(LogLeaf.digest == digest, LogLeaf.kind == kind))


class Tree(TilesReader):
    """The tree as it was with its first ``size`` leaves: roots and proofs.

    Hashes are read in tiles and kept, so that many proofs of one tree cost little more than one.
    LogDamagedError where a hash is missing; ProofError if the log is smaller than ``size``.
    """

    def __init__(self, session: Session, size: int | None = None) -> None:
        connection = session.connection()
        there = _size(connection)
        wanted = there if size is None else size
        if not 0 <= wanted <= there:
            raise ProofError(f"the log has {there} leaves, not {wanted}")
        super().__init__(_Tiles(connection))
        self.set_size(wanted)
        self._known: dict[tuple[int, int], bytes] = {}
        self.leaves = wanted

    def mth(self, start: int, end: int) -> bytes:
        """Hash over the leaves from ``start`` up to, but not including, ``end`` (32 bytes)."""
        found = self._known.get((start, end))
        if found is None:
            found = self._known[start, end] = super().mth(start, end)
        return found

    def node(self, level: int, position: int) -> bytes:
        """Hash over 256 ** ``level`` leaves, computed from the 256 hashes of the level below, which must be there."""
        half = TILE**level // 2
        start = 2 * half * position
        # Asked for the whole, the library would look for the hash that is wanted here.
        return sha256(b"\x01" + self.mth(start, start + half) + self.mth(start + half, start + 2 * half))

    @property
    def root(self) -> bytes:
        """Root hash (32 bytes)."""
        return self.calculate_root_hash()

    def prove_inclusion(self, index: int) -> InclusionProof:
        """Proof that the leaf ``index`` is in this tree; ProofError if it is not."""
        if not 0 <= index < self.leaves:
            raise ProofError(f"the log of {self.leaves} leaves has no leaf {index}")
        found = self.get_inclusion_proof(index, self.leaves)
        return InclusionProof(index, self.leaves, tuple(found.node_hashes))

    def prove_consistency(self, old_size: int) -> ConsistencyProof:
        """Proof that this tree begins with the one of ``old_size`` leaves; ProofError if that is larger."""
        if not 0 <= old_size <= self.leaves:
            raise ProofError(f"a log of {self.leaves} leaves cannot begin with one of {old_size}")
        # RFC 9162 has no proof from the empty tree: it is the beginning of every tree.
        hashes = self.get_consistency_proof(old_size, self.leaves).node_hashes if old_size else []
        return ConsistencyProof(old_size, self.leaves, tuple(hashes))


class _Tiles:
    """The ledger as a place where tlog-scales looks for tiles, by their paths of c2sp.org/tlog-tiles."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, *path: str) -> bytes | None:
        """A tile's hashes, one after the other."""
        _, level_text, *names = path
        level, wanted = int(level_text), TILE
        if names[-2:-1] and names[-2].endswith(".p"):
            wanted = int(names.pop())
            names[-1] = names[-1].removesuffix(".p")
        number = int("".join(name.removeprefix("x") for name in names))
        hashes = read_hashes(self._connection, level, number * TILE, wanted)
        if len(hashes) != wanted:
            raise LogDamagedError(f"the log is damaged: hashes of level {level} from {number * TILE} on are missing")
        return b"".join(hashes)


def read_hashes(connection: Connection, level: int, start: int, count: int) -> list[bytes]:
    """``count`` hashes of a level from position ``start`` on, fewer if there are not so many."""
    if level == 0:
        query = select(LogLeaf.hash).where(LogLeaf.id >= start, LogLeaf.id < start + count).order_by(LogLeaf.id)
    else:
        near = LogNode.level == level, LogNode.position >= start, LogNode.position < start + count
        query = select(LogNode.hash).where(*near).order_by(LogNode.position)
    return list(connection.scalars(query))


def _size(connection: Connection) -> int:
    last = connection.scalar(select(func.max(LogLeaf.id)))
    return 0 if last is None else last + 1
