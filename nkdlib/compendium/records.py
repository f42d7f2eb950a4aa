"""How results are written into `figures/<profile>/`: JSON in a fixed order, Markdown tables, executed notebooks."""

import base64
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from nkdlib.compendium.tiers import portable
from nkdlib.tasks.places import checkout, write_atomically

OBSERVATIONS = "observations.json"
PROVENANCE = "provenance.json"
REFERENCE = "reference.json"
WIDEST = 800  # pixels of a photograph in a committed notebook; the folder of figures keeps all of them


def write_json(path: Path, content: object) -> Path:
    """Write JSON that depends on its content only, with a final newline."""
    return write_atomically(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table without padding, so that one changed cell changes one line; pipes are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def without_places(path: Path) -> bytes:
    """Return an executed notebook without times and paths of the machine, its pictures small."""
    notebook = json.loads(path.read_text(encoding="utf-8"))  # nbformat takes two seconds to import
    ran = notebook["metadata"].get("papermill", {}).get("parameters", {})
    notebook["metadata"]["papermill"] = {"parameters": portable(ran)}
    for cell in notebook["cells"]:
        for name in ("papermill", "execution"):
            cell["metadata"].pop(name, None)
    text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False)
    for place, name in ((checkout(), "."), (Path.home(), "~")):
        text = re.sub(rf"(?<![\w+/]){re.escape(str(place))}(?![\w+=])", name, text)  # never inside of a picture
    return (re.sub(r'(?<=base64,)[\w+/=]+|(?<="image/png": ")[\w+/=\\n]+', _smaller, text) + "\n").encode()


def _smaller(found: re.Match) -> str:
    """Write a picture in base64 anew, if that is shorter: a PNG with a palette, a JPEG at most `WIDEST` pixels wide."""
    picture = Image.open(io.BytesIO(base64.b64decode(found[0].replace("\\n", ""))))
    buffer = io.BytesIO()
    if picture.format == "JPEG":
        if picture.width <= WIDEST:
            return found[0]
        height = round(picture.height * WIDEST / picture.width)
        picture.resize((WIDEST, height), Image.Resampling.LANCZOS).save(buffer, "jpeg", quality=75)
    else:
        picture = picture.convert("RGBA")
        on_white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        on_white.quantize(256).save(buffer, "png", optimize=True)
    return min(base64.b64encode(buffer.getvalue()).decode(), found[0], key=len)
