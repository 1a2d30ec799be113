"""What the transparency log costs: appending, proofs and their verification, over a ledger in an SQLite file.

Every leaf is appended in a transaction of its own for the first thousand (as a receipt is), the rest in one.
"Verify" is what a regulator's machine does with a certificate: parse every proof from JSON, verify it, and the
checkpoint; nothing is read from the ledger.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from clue_coordinator import tlog
from clue_coordinator.ledger import Ledger
from clue_protocol.tlog import (
    LOG_KEY,
    Checkpoint,
    ConsistencyProof,
    InclusionProof,
    Leaf,
    NoteKey,
    verify_checkpoint,
    verify_consistency,
    verify_inclusion,
)

ORIGIN = "log.example/bench"
DURABLE = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the ledger is written; the default is the temporary folder")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder), arguments.leaves)
    for name, value in found.items():
        print(f"{name:45} {value:12.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


def measure(folder: Path, number: int) -> dict[str, float]:
    found: dict[str, float] = {"leaves": number}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        found[name] = time.perf_counter() - begin

    signer = CryptoSigner.generate_ed25519()
    key = NoteKey.of(ORIGIN, LOG_KEY, signer.public_key)
    ledger = Ledger(folder / "ledger.sqlite")
    receipts = [b"receipt %d" % index for index in range(number)]
    durable = min(DURABLE, number)
    with timed(f"append, s for {durable} with a commit each"):
        for index in range(durable):
            with ledger.write() as session:
                tlog.append(session, "receipt", receipts[index], f"r/{index}")
    with timed(f"append, s for {number - durable} in one commit"), ledger.write() as session:
        for index in range(durable, number):
            tlog.append(session, "receipt", receipts[index], f"r/{index}")
    with timed("checkpoint, s"), ledger.write() as session:
        tlog.make_checkpoint(session, ORIGIN, signer, time.time())
    with ledger.read() as session:
        with timed("one inclusion proof, s"):
            tlog.Tree(session).prove_inclusion(number // 2)
        with timed("one consistency proof, s"):
            consistency = tlog.Tree(session).prove_consistency(number // 3)
        old_root = tlog.Tree(session, number // 3).root
        with timed("all inclusion proofs, s"):
            tree = tlog.Tree(session)
            proofs = [tree.prove_inclusion(index) for index in range(number)]
        with timed("verify the log in the ledger, s"):
            tlog.verify_log(session, [key])
        note = tlog.note_of_size(session)
    ledger.close()
    texts = [json.dumps(proof.to_dict()) for proof in proofs]
    found["all inclusion proofs, MB of JSON"] = sum(map(len, texts)) / 1e6
    with timed("verify all inclusion proofs, s"):
        checkpoint = verify_checkpoint(note, key)
        for index, text in enumerate(texts):
            leaf = Leaf.of("receipt", receipts[index], f"r/{index}")
            verify_inclusion(leaf, InclusionProof.from_dict(json.loads(text)), checkpoint)
    with timed("verify one consistency proof, s"):
        old = Checkpoint(ORIGIN, number // 3, old_root)
        verify_consistency(old, checkpoint, ConsistencyProof.from_dict(consistency.to_dict()))
    return found


if __name__ == "__main__":
    main()
