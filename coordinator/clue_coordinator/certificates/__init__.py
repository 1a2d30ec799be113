"""Erasure certificates: made from the ledger, and written for people. How they are verified is in clue_protocol."""

from clue_coordinator.certificates.make import make

__all__ = ["make"]
