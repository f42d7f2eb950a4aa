"""A mixin for objects that are best seen as a table."""

import html

import pandas as pd

LOOK = {
    "index": False,
    "float_format": "{:.4g}".format,
    "formatters": dict.fromkeys(("params", "MACs"), "{:,}".format),
    "na_rep": "not distilled",
}


class Tabled:
    """Prints itself as its `table()` with its `caption()` below, in a terminal and in a notebook."""

    def table(self) -> pd.DataFrame:
        """Its rows."""
        raise NotImplementedError

    def caption(self) -> str:
        """A line below them."""
        return ""

    def __repr__(self) -> str:
        return f"{self.table().to_string(**LOOK)}\n{self.caption()}".rstrip()

    def _repr_html_(self) -> str:
        return f"{self.table().to_html(**LOOK)}<p>{html.escape(self.caption())}</p>"
