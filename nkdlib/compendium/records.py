"""How results are written into `figures/<profile>/`: JSON in a fixed order, and Markdown tables."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from nkdlib.tasks.places import write_atomically

OBSERVATIONS = "observations.json"
PROVENANCE = "provenance.json"
REFERENCE = "reference.json"


def write_json(path: Path, content: object) -> Path:
    """Write JSON that depends on its content only, with a final newline."""
    return write_atomically(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table without padding, so that one changed cell changes one line; pipes are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
