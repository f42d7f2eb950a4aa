"""Saving figures: as SVG for pages, as pixels for notebooks, and in words."""

import base64
import io
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nkdlib.tasks.places import write_atomically

DPI, QUALITY = 160, 75  # of pixels; of JPEG


def save(fig: Figure, path_stem: str | Path, alt: str, watermark: str = "") -> list[Path]:
    """Write a figure as SVG and as pixels with its alternative text; the same figure gives the same bytes.

    Photographs become JPEG, inside the SVG and as pixels, other pixels a PNG of 256 colors.

    Args:
        fig: the figure.
        path_stem: the files' path without a suffix.
        alt: the figure in words, kept in the files' metadata and in `<stem>.alt.txt`.
        watermark: words over the figure that say that its numbers are no result.

    Returns:
        The three paths: SVG, PNG or JPEG, text.

    Raises:
        ValueError: an empty `alt`.
    """
    alt, title = " ".join(alt.split()), Path(path_stem).name
    if not alt:
        raise ValueError(f"alt is empty; say in words what {title} shows")
    if watermark:
        style = {"color": "0.5", "alpha": 0.3, "fontsize": 26, "rotation": 20, "ha": "center", "va": "center"}
        fig.text(0.5, 0.5, watermark, zorder=9, **style)
    vector, pixels, packed, info = io.StringIO(), io.BytesIO(), io.BytesIO(), PngInfo()
    described, style = {"Title": title, "Description": alt}, {"bbox_inches": "tight", "dpi": DPI}
    with mpl.rc_context({"svg.hashsalt": "nkdlib"}):  # a page's own color shows through the SVG
        fig.savefig(vector, format="svg", transparent=True, metadata=described | {"Date": None}, **style)
        fig.savefig(pixels, format="png", **style)
    drawn, image = _with_jpeg(vector.getvalue()), Image.open(pixels).convert("RGB")
    if "data:image/jpeg" in drawn:
        suffix = "jpg"
        image.save(packed, "JPEG", quality=QUALITY, comment=alt.encode())
    else:
        suffix = "png"
        for key, value in described.items():
            info.add_itxt(key, value)
        image.quantize().save(packed, "PNG", pnginfo=info)
    files = {suffix: packed.getvalue(), "alt.txt": f"{alt}\n".encode()}
    return [
        write_atomically(f"{path_stem}.{kind}", content) for kind, content in ({"svg": drawn.encode()} | files).items()
    ]


def _with_jpeg(svg: str) -> str:
    """Replace photographs in an SVG by JPEG: opaque images of which it makes less than half."""

    def smaller(found: re.Match) -> str:
        png, jpeg = base64.b64decode(found[1]), io.BytesIO()
        with Image.open(io.BytesIO(png)) as image:
            image.convert("RGB").save(jpeg, "JPEG", quality=QUALITY)
            opaque = image.convert("RGBA").getextrema()[3] == (255, 255)
        if not opaque or 2 * len(jpeg.getvalue()) > len(png):
            return found[0]
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"

    return re.sub(r"data:image/png;base64,([^\"]+)", smaller, svg)


def kind(svg: Path) -> str:
    """Return "picture" for a figure with pixels of its own, else "drawing": a dark page may turn its colors."""
    return "picture" if "<image" in svg.read_text(encoding="utf-8") else "drawing"
