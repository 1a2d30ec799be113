"""What a device signs when it enrols itself, so that anybody can see later that name and key belong together."""

from securesystemslib.signer import Signer

from clue_protocol.documents import Enrolment
from clue_protocol.envelope import open_message, peek_message, sign_message
from clue_protocol.v1 import enrolment_pb2 as pb

STATEMENT_TYPE = "application/vnd.clue.enrolment.v1+protobuf"
# Of a message to or from the enrolment service.
MAX_MESSAGE_BYTES = 2 << 20


def sign_statement(installation: str, secret_sha256: bytes, enrolment: Enrolment, signer: Signer) -> bytes:
    """The envelope of an EnrolmentStatement.

    Args:
        installation: 32 hex digits, from the token.
        secret_sha256: of the token's secret (32 bytes): the statement is good for this token alone.
        enrolment: what the device says of itself.
        signer: its receipt key.
    """
    statement = pb.EnrolmentStatement(
        installation=installation, invitation=secret_sha256, enrolment_json=enrolment.to_json()
    )
    return sign_message(statement, STATEMENT_TYPE, [signer])


def open_statement(envelope: bytes) -> tuple[pb.EnrolmentStatement, Enrolment]:
    """Verify a statement with the receipt key that it names itself: who made it has that key.

    Raises:
        EnvelopeError: no statement.
        SignatureError: not signed by that key.
        DocumentError: the document in it is none.
    """
    claimed = peek_message(envelope, STATEMENT_TYPE, pb.EnrolmentStatement)
    enrolment = Enrolment.from_json(claimed.enrolment_json)
    return open_message(envelope, STATEMENT_TYPE, pb.EnrolmentStatement, [enrolment.receipt_key]), enrolment
