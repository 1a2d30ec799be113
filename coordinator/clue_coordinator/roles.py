"""Who may call what: the roles of tokens and the least role of every method of the operator API.

::

    admin --+--> operator --+--> viewer
            +--> approver --+

A viewer reads. An operator also makes requests and controls them; an approver reads and approves. Neither includes the
other, so that the one who asks for something irreversible need not be the one who can let it through. An admin may do
everything: fleets, devices and tokens too.
"""

from enum import StrEnum

from clue_protocol.v1 import operator_pb2

SERVICE = "clue.v1.OperatorService"


class Role(StrEnum):
    """What a token is good for."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"

    @property
    def phrase(self) -> str:
        """For messages: "a viewer", "an operator"."""
        return f"{'a' if self is Role.VIEWER else 'an'} {self}"

    def includes(self, needed: "Role") -> bool:
        """True if this role may do what ``needed`` may do."""
        return needed in _INCLUDED[self]


_INCLUDED = {
    Role.VIEWER: frozenset({Role.VIEWER}),
    Role.OPERATOR: frozenset({Role.VIEWER, Role.OPERATOR}),
    Role.APPROVER: frozenset({Role.VIEWER, Role.APPROVER}),
    Role.ADMIN: frozenset(Role),
}

# Method of OperatorService -> least role. A method that is not here is refused to all but admins.
METHODS = {
    "GetServerInfo": Role.VIEWER,
    "ListFleets": Role.VIEWER,
    "GetDevice": Role.VIEWER,
    "ListDevices": Role.VIEWER,
    "GetRequest": Role.VIEWER,
    "ListRequests": Role.VIEWER,
    "WatchRequest": Role.VIEWER,
    "ListExecutions": Role.VIEWER,
    "ListEvents": Role.VIEWER,
    "PlanForget": Role.VIEWER,
    "GetRoot": Role.VIEWER,
    "GetTrustDocument": Role.VIEWER,
    "GetRequestDocument": Role.VIEWER,
    "ApproveRequest": Role.APPROVER,
    "RejectRequest": Role.APPROVER,
    "Forget": Role.OPERATOR,
    "CancelRequest": Role.OPERATOR,
    "PauseRequest": Role.OPERATOR,
    "ResumeRequest": Role.OPERATOR,
    "RetryRequest": Role.OPERATOR,
    "LabelDevice": Role.OPERATOR,
    "RetireDevice": Role.ADMIN,
    "CreateFleet": Role.ADMIN,
    "AddDevice": Role.ADMIN,
    "PublishRoot": Role.ADMIN,
    "CreateToken": Role.ADMIN,
    "ListTokens": Role.ADMIN,
    "RevokeToken": Role.ADMIN,
}


def needed_role(path: str) -> Role:
    """Least role for the gRPC method ``/package.Service/Method``."""
    service, _, method = path.removeprefix("/").partition("/")
    if service == SERVICE:
        return METHODS.get(method, Role.ADMIN)
    # Reflection tells how to ask, and nothing about what is there.
    return Role.VIEWER if service.startswith("grpc.reflection.") else Role.ADMIN


def unassigned_methods() -> list[str]:
    """Methods of the service that :data:`METHODS` does not name, and names in it that are no methods."""
    there = {method.name for method in operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].methods}
    return sorted(there ^ set(METHODS))
