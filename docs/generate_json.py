"""Write docs/json.md and docs/schemas from clue_coordinator/json_types.py; ``--check`` says whether they are fresh."""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from clue_coordinator.json_types import DOCUMENTS

DOCS = Path(__file__).parent

_HEAD = """# JSON output

Commands with `--json` print one JSON document on standard output and nothing else there; errors stay one line on
standard error, and the exit code is the same as without. `forget --json FILE` writes it to a file (`-` is standard
output), and `demo --json` has a report of its own. `[]` after a command means that it prints a list of these documents.

Times are RFC 3339 in UTC. Shares (accuracies, rules) are in [0, 1]. `null` means that there is none, or that it was not
measured. Fields may be added in later versions; none is renamed, removed or given another meaning. The JSON Schemas are
in [schemas](schemas).

This page is made from `coordinator/clue_coordinator/json_types.py` by `python docs/generate_json.py`.
"""


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of a document."""
    kind, _ = DOCUMENTS[name]
    schema: dict[str, Any] = TypeAdapter(kind).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_open(schema)}


def _open(schema: dict[str, Any]) -> dict[str, Any]:
    """The same without the bar on unknown fields: what a later version adds must not break a reader."""
    parts = {key: _open(value) if isinstance(value, dict) else value for key, value in schema.items()}
    return {key: value for key, value in parts.items() if (key, value) != ("additionalProperties", False)}


def files() -> dict[Path, str]:
    """What the files must hold."""
    found, parts, told = {}, [_HEAD], set()
    for name, (_, commands) in DOCUMENTS.items():
        schema = schema_of(name)
        found[DOCS / "schemas" / f"{name}.schema.json"] = json.dumps(schema, indent=2) + "\n"
        parts.append(
            f"\n## {name}\n\n{schema['description']} Printed by: {commands}. [Schema](schemas/{name}.schema.json)\n"
        )
        parts.append(_table(schema))
        for title, part in schema.get("$defs", {}).items():
            if title not in told:
                told.add(title)
                parts.append(f"\n### {title}\n\n{part['description']}\n")
                parts.append(_table(part))
    found[DOCS / "json.md"] = "".join(parts)
    return found


def _table(schema: dict[str, Any]) -> str:
    rows = [f"| `{name}` | {_type(field)} | {field['description']} |\n" for name, field in schema["properties"].items()]
    return "\n| Field | Type | Meaning |\n| --- | --- | --- |\n" + "".join(rows)


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_type(part) for part in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{word}`" for word in field["enum"])
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if field["type"] == "object":
        return f"object of {_type(field['additionalProperties'])}"
    return "time" if field.get("format") == "date-time" else str(field["type"])


def main() -> None:
    """Entry point."""
    stale = [path for path, text in files().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path} is not what json_types.py says: run 'python docs/generate_json.py'")
        sys.exit(bool(stale))
    (DOCS / "schemas").mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
