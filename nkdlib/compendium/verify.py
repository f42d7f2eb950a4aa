"""`make verify`: judge every claim at a tier, and compare with the committed reference.

A claim that the reference honestly reports as undecided or contradicted is no failure; a verdict or a mean that differs
from the reference beyond the criterion's tolerance is.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nkdlib.compendium.claims import CLAIMS, claim_by_id, read_claims
from nkdlib.compendium.criteria import Assessment, short
from nkdlib.compendium.judge import NOTHING, Observation, Record, Verdicts, judge, read_reference
from nkdlib.compendium.provenance import git
from nkdlib.compendium.records import OBSERVATIONS, PROVENANCE, REFERENCE, without_places
from nkdlib.compendium.tiers import TIERS
from nkdlib.tasks.places import figures_root, runs_root, write_atomically

MOST_BYTES = 5_000_000  # of a tier's executed notebooks


@dataclass(frozen=True)
class Comparison:
    """A verdict, or the mean of a criterion, beside that of the reference."""

    claim: str
    what: str  # "verdict" or the criterion
    here: str
    reference: str
    tolerance: str
    agrees: bool

    def __str__(self) -> str:
        tolerance = self.tolerance and f", tolerance {self.tolerance}"
        return f"{self.claim} {self.what}: {self.here}; the reference: {self.reference}{tolerance}"


def judge_all(profile: str) -> Record:
    """Judge every claim on what the tier's notebooks observed; what ran with other parameters is shown, not judged.

    Raises:
        ValueError: a file that cannot be read.
    """
    observations, origins = [], {}
    for path in sorted((figures_root() / profile).glob(f"*/{OBSERVATIONS}")):
        try:
            rows = json.loads(path.read_text())["observations"]
            origin = json.loads(path.with_name(PROVENANCE).read_text())
            if not rows:  # such as 09, which shows the others', or 10, which decides no claim
                continue
            if TIERS[profile].departures(path.parent.name, origin["parameters"]):
                rows = [row for row in rows if known(row)]
            observations += [Observation(**row) for row in rows]
            origins[path.parent.name] = origin
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = f"remove {path.parent} and run make reproduce PROFILE={profile}"
            raise ValueError(f"{path} is not a file of observations with its provenance ({error}); {remedy}") from error
    own = departures(profile, origins)
    verdicts = {claim.id: judge(claim, observations, profile, own.get(claim.notebook, "")) for claim in CLAIMS}
    return Record(profile, Verdicts(verdicts), origins)


def known(row: Mapping[str, object]) -> bool:
    """Tell whether an observation, perhaps of an earlier protocol, belongs to a criterion of claims.toml."""
    return any(row["claim"] == claim.id and row["metric"] == c.metric for claim in CLAIMS for c in claim.criteria)


def departures(profile: str, origins: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """Return the notebooks that ran with other parameters than the tier's, and which these are."""
    found = {stem: TIERS[profile].departures(stem, origin["parameters"]) for stem, origin in origins.items()}
    return {stem: words for stem, words in found.items() if words}


def compare(reference: Record, here: Record) -> list[Comparison]:
    """Compare verdicts and means with the reference's."""
    found = []
    for claim in sorted({*reference.claims, *here.claims}):
        now, then = here.claims.get(claim), reference.claims.get(claim, NOTHING)
        verdict = now.verdict if now else "no longer in claims.toml"
        found.append(Comparison(claim, "verdict", verdict, then.verdict, "", verdict == then.verdict))
        after, before = now.found if now else {}, then.found
        found += [_compared(claim, name, after.get(name), before.get(name)) for name in {**before, **after}]
    return found


def _compared(claim: str, name: str, now: Assessment | None, then: Assessment | None) -> Comparison:
    if now is None or then is None:
        return Comparison(claim, name, str(now or "not observed"), str(then or "not observed"), "", False)
    criterion = claim_by_id(claim).criterion(name)
    values = [short(one.mean) + ("" if one.mean is None else f" {criterion.unit}") for one in (now, then)]
    tolerance = "" if then.mean is None else short(criterion.allowance(then.mean))
    return Comparison(claim, name, *values, tolerance, criterion.within(now.mean, then.mean))


def check_reference(record: Record) -> None:
    """Raise `ValueError` naming the notebooks if one of a record ran with changes that are not committed."""
    if not record.provenance:
        raise ValueError(f"nothing was observed; run make reproduce PROFILE={record.profile} first")
    if changed := [stem for stem, origin in record.provenance.items() if origin["dirty"] is not False]:
        remedy = "commit them and run again, or remove what is not part of the reference"
        raise ValueError(f"{', '.join(changed)} ran with changes that are not committed; {remedy}")


def check_criteria(record: Record) -> None:
    """Raise `ValueError` naming the claims if their criteria are not those of the commit that their notebook ran at."""
    moved = []
    for claim in [claim for claim in CLAIMS if record.claims[claim.id].found]:
        commit = record.provenance[claim.notebook]["commit"]
        if (text := git("show", f"{commit}:nkdlib/compendium/claims.toml")) is None:
            raise ValueError(f"{claim.notebook} ran at {commit}, which this clone does not have; run it again")
        then = {earlier.id: earlier.criteria for earlier in read_claims(text)}
        moved += [claim.id] if then.get(claim.id) != claim.criteria else []
    if moved:
        raise ValueError(f"the criteria of {', '.join(moved)} changed after the notebooks ran; run them again")


def kept_notebooks(record: Record) -> dict[str, bytes]:
    """Return a tier's notebooks that ran from a clean tree, as they are committed; `ValueError` above 5 MB in all."""
    found = {}
    for path in sorted((figures_root() / record.profile).glob(f"*/{PROVENANCE}")):
        notebook = runs_root() / record.profile / f"{path.parent.name}.ipynb"
        if notebook.exists() and json.loads(path.read_text())["dirty"] is False:
            found[notebook.name] = without_places(notebook)
    if (size := sum(map(len, found.values()))) > MOST_BYTES:
        raise ValueError(f"executed notebooks (={size / 1e6:.1f} MB) must be below 5 MB in all; draw smaller figures")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print verdicts and differences; 0: as the reference, 1: not, 2: a file cannot be read or written."""
    parser = argparse.ArgumentParser("python -m nkdlib.compendium.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", choices=list(TIERS), default="cpu")
    parser.add_argument(
        "--write-reference", action="store_true", help="make this run the reference; from a clean tree only"
    )
    options = parser.parse_args(arguments)
    try:
        return _verify(options.profile, options.write_reference)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _verify(profile: str, write_reference: bool) -> int:
    here = judge_all(profile)
    print(here.claims)
    counts = Counter(judgement.verdict for judgement in here.claims.values())
    print(f"\ntier {profile}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
    if not TIERS[profile].judged:
        print(f"{profile} is a first look and judges nothing; PROFILE=cpu does")
        return 0
    if write_reference:
        check_reference(here)
        check_criteria(here)
        if own := departures(profile, here.provenance):
            raise ValueError(f"{'; '.join(map(': '.join, own.items()))}; run make reproduce PROFILE={profile}")
        notebooks = kept_notebooks(here)
        print(f"written: {here.write(figures_root() / profile / REFERENCE)}")
        for name, content in notebooks.items():
            write_atomically(figures_root() / profile / name, content)
        print(f"and {len(notebooks)} executed notebooks; next: python -m nkdlib.compendium.readme")
        return 0
    reference = read_reference(profile)
    if reference is None:
        print(f"no reference is committed for {profile}: nothing to compare with")
        return 0
    if kept := [stem for stem, origin in here.provenance.items() if origin == reference.provenance.get(stem)]:
        whole = "nothing was run here" if len(kept) == len(here.provenance) else f"not run here: {', '.join(kept)}"
        print(f"{whole}; committed results are compared with themselves (make reproduce PROFILE={profile} runs them)")
    differences = [f"DIFFERS: {one}" for one in compare(reference, here) if not one.agrees]
    print("\n".join(differences) or "as in the committed reference")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
