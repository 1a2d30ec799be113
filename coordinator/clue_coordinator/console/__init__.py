"""The web console: a read-only view of the ledger for people, rendered on the server (docs/console.md)."""
