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
        return table.style.hide(axis="index").format(formats, na_rep=UNKNOWN).set_caption(self.caption()).to_html()
