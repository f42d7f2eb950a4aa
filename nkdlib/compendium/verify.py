"""`make verify`: judge every claim of a profile, and compare with the committed reference.

A claim that the reference honestly reports as partly or not reproduced is no failure; a verdict or a mean that differs
from the reference beyond the criterion's tolerance is.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nkdlib.compendium.claims import CLAIMS, Claim, claim_by_id
from nkdlib.compendium.criteria import Assessment, short
from nkdlib.compendium.judge import Judgement, Observation, Verdicts, judge
from nkdlib.compendium.records import OBSERVATIONS, PROVENANCE, REFERENCE, markdown, write_json
from nkdlib.compendium.tiers import TIERS
from nkdlib.tasks.places import figures_root, write_atomically

BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
COLUMNS = ("claim", "published", "here: mean [95 % interval]", "verdict", "evidence", "cost")
INDIFFERENT = {"jobs", "executor"}  # parameters that must not change a result
NOTHING = Judgement("not attempted", "", "", {})
UPDATE = "python -m nkdlib.compendium.verify --table README.md"


@dataclass(frozen=True)
class Record:
    """The verdicts of one profile, every seed, and the provenance of the notebooks behind them."""

    profile: str
    claims: Verdicts
    provenance: Mapping[str, Mapping[str, object]]  # notebook -> as it wrote it

    def write(self, path: Path) -> Path:
        """Write the record as JSON."""
        return write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read what `write` wrote; `ValueError` for any other file."""
        try:
            content = json.loads(path.read_text())
            for judged in content["claims"].values():
                for metric, found in judged["metrics"].items():
                    values = {int(seed): value for seed, value in found["values"].items()}
                    judged["metrics"][metric] = Assessment(**found | {"values": values})
            claims = {name: Judgement(**judged) for name, judged in content["claims"].items()}
            return cls(content["profile"], Verdicts(claims), content["provenance"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a reference ({error!r}); restore it, or write it anew") from error


@dataclass(frozen=True)
class Comparison:
    """A verdict, or the mean of a metric, beside that of the reference."""

    claim: str
    what: str  # "verdict" or the metric
    here: str
    reference: str
    tolerance: str
    agrees: bool

    def __str__(self) -> str:
        tolerance = self.tolerance and f", tolerance {self.tolerance}"
        return f"{self.claim} {self.what}: {self.here}; the reference: {self.reference}{tolerance}"


def read_observations(profile: str) -> list[Observation]:
    """Read everything that the notebooks of a profile observed; `ValueError` for a file that cannot be read."""
    found: list[Observation] = []
    for path in sorted((figures_root() / profile).glob(f"*/{OBSERVATIONS}")):
        try:
            content = json.loads(path.read_text())
            found += [Observation(**row, profile=content["profile"]) for row in content["observations"]]
        except (ValueError, KeyError, TypeError) as error:
            remedy = f"remove it and run make reproduce PROFILE={profile}"
            raise ValueError(f"{path} is not a file of observations ({error}); {remedy}") from error
    return found


def judge_all(profile: str) -> Record:
    """Judge every claim of claims.toml on what the profile's notebooks observed."""
    observations = read_observations(profile)
    verdicts = Verdicts({claim.id: judge(claim, observations, profile) for claim in CLAIMS})
    origins = [path.with_name(PROVENANCE) for path in sorted((figures_root() / profile).glob(f"*/{OBSERVATIONS}"))]
    provenance = {path.parent.name: json.loads(path.read_text()) for path in origins if path.exists()}
    return Record(profile, verdicts, provenance)


def read_reference(profile: str, figures: Path | None = None) -> Record | None:
    """Read the committed reference of a profile, None if there is none."""
    path = (figures or figures_root()) / profile / REFERENCE
    return Record.read(path) if path.exists() else None


def compare(reference: Record, here: Record) -> list[Comparison]:
    """Compare every verdict, and the mean of every metric, with the reference's."""
    found = []
    for claim in sorted({*reference.claims, *here.claims}):
        now, then = here.claims.get(claim), reference.claims.get(claim, NOTHING)
        verdict = now.verdict if now else "no longer in claims.toml"
        found.append(Comparison(claim, "verdict", verdict, then.verdict, "", verdict == then.verdict))
        after, before = now.metrics if now else {}, then.metrics
        found += [_compared(claim, metric, after.get(metric), before.get(metric)) for metric in {**before, **after}]
    return found


def _compared(claim: str, metric: str, now: Assessment | None, then: Assessment | None) -> Comparison:
    if now is None or then is None:
        return Comparison(claim, metric, str(now or "not observed"), str(then or "not observed"), "", False)
    criterion = claim_by_id(claim).criterion(metric)
    values = [short(one.mean) + ("" if one.mean is None else f" {criterion.unit}") for one in (now, then)]
    tolerance = "" if then.mean is None else short(criterion.allowance(then.mean))
    return Comparison(claim, metric, *values, tolerance, criterion.within(now.mean, then.mean))


def other_parameters(reference: Record, here: Record) -> list[str]:
    """Name the notebooks that ran with other parameters than the reference's: the first thing to look at."""
    found = []
    for notebook in sorted({*reference.provenance} & {*here.provenance}):
        then, now = (side.provenance[notebook].get("parameters", {}) for side in (reference, here))
        for name in sorted(({*then} & {*now}) - INDIFFERENT):  # the others are newer than the reference, or gone
            if then[name] != now[name]:
                found.append(f"{notebook} ran with {name}={now[name]}, the reference with {then[name]}")
    return found


def claims_table(record: Record | None, notebooks: Path) -> str:
    """Write the papers' claims, then the extensions, as Markdown.

    Args:
        record: the verdicts to show, None before the first reference.
        notebooks: the folder of notebooks, to link those that exist.
    """
    profile, judged = (record.profile, record.claims) if record else ("cpu", {})
    claims, extensions = (
        markdown(
            COLUMNS, [_row(c, judged.get(c.id, NOTHING), profile, notebooks) for c in CLAIMS if c.extension is kind]
        )
        for kind in (False, True)
    )
    source = f"profile `{profile}`" if record else "no reference run is committed yet"
    return f"The papers' claims ({source}):\n\n{claims}\nExtensions, which never fill a claim's row:\n\n{extensions}"


def _row(claim: Claim, judged: Judgement, profile: str, notebooks: Path) -> tuple[str, ...]:
    name = f"**{claim.id}** {claim.title}"
    if (notebooks / f"{claim.notebook}.ipynb").exists():
        name += f" ([{claim.notebook}](notebooks/{claim.notebook}.ipynb))"
    published = claim.published if claim.extension else f"{claim.published} ({claim.source})"
    here = [
        f"{criterion.metric} {judged.metrics[criterion.metric]} ({criterion.unit}; asked: {criterion})"
        for criterion in claim.criteria
        if criterion.metric in judged.metrics
    ]
    reason = f": {judged.reason}" if judged.reason and judged.verdict != "reproduced" else ""
    verdict = f"**{judged.verdict}**{reason}"
    return name, published, "<br>".join(here), verdict, judged.evidence, claim.cost.get(profile, "")


def updated(text: str, table: str) -> str:
    """Return `text` with the table between its marks. Raises `ValueError` if a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the text has no {BEGIN} followed by {END}; put both lines where the table belongs")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print verdicts and differences; 0: as the reference, 1: not, 2: a file cannot be read or written."""
    parser = argparse.ArgumentParser("python -m nkdlib.compendium.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", choices=list(TIERS), default="cpu")
    act = parser.add_mutually_exclusive_group()
    act.add_argument("--write-reference", action="store_true", help="make this run the reference")
    act.add_argument("--table", type=Path, metavar="FILE", help=f"put the reference's table into a file, below {BEGIN}")
    options = parser.parse_args(arguments)
    try:
        if options.table:
            table = claims_table(read_reference(options.profile), options.table.parent / "notebooks")
            write_atomically(options.table, updated(options.table.read_text(), table).encode())
            return 0
        return _verify(options.profile, options.write_reference)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _verify(profile: str, write_reference: bool) -> int:
    here = judge_all(profile)
    print(here.claims)
    counts = Counter(judgement.verdict for judgement in here.claims.values())
    print(f"\nprofile {profile}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
    if not TIERS[profile].judged:
        print(f"{profile} is a first look and judges nothing; PROFILE=cpu does")
        return 0
    if write_reference:
        if not here.provenance:
            raise ValueError(f"nothing was observed; run make reproduce PROFILE={profile} first")
        print(f"written: {here.write(figures_root() / profile / REFERENCE)}")
        return 0
    reference = read_reference(profile)
    if reference is None:
        print(f"no reference is committed for {profile}: nothing to compare with")
        return 0
    for note in other_parameters(reference, here):
        print(f"note: {note}")
    differences = [f"DIFFERS: {one}" for one in compare(reference, here) if not one.agrees]
    print("\n".join(differences) or "as in the committed reference")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
