"""The token methods of the operator API, mixed into the service."""

import grpc

from clue_coordinator import tokens
from clue_coordinator.answers import answering
from clue_coordinator.errors import UsageError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Token
from clue_coordinator.roles import Role
from clue_coordinator.views import stamp
from clue_protocol.v1 import operator_pb2 as pb

_ROLES = {Role[name.removeprefix("ROLE_")]: number for name, number in pb.Role.items() if number}


class TokenMethods:
    """See operator.proto."""

    _ledger: Ledger

    def CreateToken(self, request: pb.CreateTokenRequest, context: grpc.ServicerContext) -> pb.CreateTokenResponse:  # noqa: D102
        with answering(context):
            role = next((role for role, number in _ROLES.items() if number == request.role), None)
            if role is None:
                raise UsageError(f"a token needs a role: {', '.join(Role)}")
            token, secret = tokens.create_token(self._ledger, request.name, role, request.lifetime_seconds)
            return pb.CreateTokenResponse(token=token_view(token), secret=secret)
        raise AssertionError

    def ListTokens(self, request: pb.ListTokensRequest, context: grpc.ServicerContext) -> pb.ListTokensResponse:  # noqa: D102
        with answering(context):
            return pb.ListTokensResponse(tokens=[token_view(token) for token in tokens.list_tokens(self._ledger)])
        raise AssertionError

    def RevokeToken(self, request: pb.RevokeTokenRequest, context: grpc.ServicerContext) -> pb.Token:  # noqa: D102
        with answering(context):
            return token_view(tokens.revoke_token(self._ledger, request.name))
        raise AssertionError


def token_view(token: Token) -> pb.Token:
    """A row as the message that operators see."""
    return pb.Token(
        name=token.name,
        role=_ROLES[Role(token.role)],
        created_at=stamp(token.created_at),
        created_by=token.created_by,
        expires_at=stamp(token.expires_at),
        revoked_at=stamp(token.revoked_at),
        last_used_at=stamp(token.last_used_at),
    )
