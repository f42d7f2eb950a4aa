"""How splits, distillations, libraries and compositions print: a table and a line below it."""

import re

import pandas as pd
from pandas.io.formats.style import Styler

UNKNOWN = "not distilled"
FORMATS = {
    "local error": "{:.4f}".format,
    **dict.fromkeys(("params", "MACs"), "{:,}".format),
    **dict.fromkeys(("start [s]", "steps [s]"), "{:.2f}".format),
    "share of MACs": "{:.1%}".format,
    "latency [ms]": "{:.3g}".format,
}


class Tabled:
    """Prints itself as its `table()` with its `caption()`, in a terminal and in a notebook."""

    def table(self) -> pd.DataFrame:
        """Its rows."""
        raise NotImplementedError

    def caption(self) -> str:
        """What is said below them."""
        return ""

    def __repr__(self) -> str:
        return f"{self.table().to_string(index=False, formatters=FORMATS, na_rep=UNKNOWN)}\n{self.caption()}".rstrip()

    def _repr_html_(self) -> str:
        table = self.table()
        formats = {column: FORMATS[column] for column in table.columns if column in FORMATS}
        styled = table.style.hide(axis="index").format(formats, na_rep=UNKNOWN).set_caption(self.caption())
        return words_left(styled).to_html()


def words_left(styled: Styler) -> Styler:
    """Align the columns that hold words, and what names the rows, to the left; JupyterLab aligns all to the right."""

    def words(cell: object) -> bool:
        return isinstance(cell, str) and re.search("[A-Za-z]{2}", cell) is not None

    left = {"props": "text-align: left"}
    columns = {name: [left | {"selector": ""}] for name, column in styled.data.items() if column.map(words).any()}
    heads = [left | {"selector": ".row_heading, .index_name"}]
    return styled.set_table_styles(heads).set_table_styles(columns, overwrite=False)
