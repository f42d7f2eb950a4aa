"""How splits, distillations, libraries and compositions print: a table and a line below it."""

import pandas as pd

UNKNOWN = "not distilled"
FORMATS = {
    **dict.fromkeys(("local error", "error in context"), "{:.4f}".format),
    **dict.fromkeys(("params", "MACs"), "{:,}".format),
    **dict.fromkeys(("start [s]", "steps [s]"), "{:.2f}".format),
    "share of MACs": "{:.1%}".format,
    "latency [ms]": "{:.3g}".format,
}


def text(table: pd.DataFrame, caption: str = "") -> str:
    """A table for a terminal."""
    return f"{table.to_string(index=False, formatters=FORMATS, na_rep=UNKNOWN)}\n{caption}".rstrip()


def html(table: pd.DataFrame, caption: str = "") -> str:
    """A table for a notebook."""
    formats = {column: FORMATS[column] for column in table.columns if column in FORMATS}
    style = table.style.hide(axis="index").format(formats, na_rep=UNKNOWN)
    return (style.set_caption(caption) if caption else style).to_html()
