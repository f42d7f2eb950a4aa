"""`make verify`: judge every claim of a profile, and compare with the committed reference.

A claim that the reference honestly reports as partly or not reproduced is no failure; a verdict or a mean
that differs from the reference beyond the criterion's tolerance is.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nkdlib.compendium.claims import CLAIMS, claim_by_id
from nkdlib.compendium.criteria import short
from nkdlib.compendium.judge import Judgement, judge
from nkdlib.compendium.results import OBSERVATIONS, PROVENANCE, Verdicts, dumps, read_observations
from nkdlib.compendium.tiers import PROFILES
from nkdlib.tasks.places import figures_root, write_atomically

REFERENCE = "reference.json"
INDIFFERENT = {"jobs", "executor"}  # parameters that must not change a result


def judge_all(profile: str) -> Verdicts:
    """Judge every claim of the catalogue on what the profile's notebooks observed."""
    observations = read_observations(profile)
    return Verdicts(judge(claim, observations, profile) for claim in CLAIMS)


def as_reference(judgements: Sequence[Judgement], profile: str) -> dict:
    """What is committed for a profile: verdicts, means and every seed, with the notebooks' provenance."""
    folders = [path.parent for path in sorted((figures_root() / profile).glob(f"*/{OBSERVATIONS}"))]
    origins = {folder.name: folder / PROVENANCE for folder in folders}
    claims = {
        judgement.claim.id: {
            "verdict": judgement.verdict,
            "reason": judgement.reason,
            "evidence": judgement.evidence,
            "metrics": {
                a.criterion.metric: {**asdict(a.interval), "outcome": a.outcome}
                for a in judgement.assessments
                if a.interval is not None
            },
        }
        for judgement in judgements
    }
    provenance = {name: json.loads(path.read_text()) for name, path in origins.items() if path.exists()}
    return {"profile": profile, "claims": claims, "provenance": provenance}


def read_reference(profile: str, figures: Path | None = None) -> dict | None:
    """The committed reference of a profile, None where there is none."""
    path = (figures or figures_root()) / profile / REFERENCE
    return json.loads(path.read_text()) if path.exists() else None


def differences(reference: dict, here: dict) -> list[str]:
    """What differs between two references beyond the criteria's tolerances, one sentence each."""
    found = []
    nothing = {"verdict": "not attempted", "metrics": {}}
    for claim in sorted({*reference["claims"], *here["claims"]}):
        if claim not in here["claims"]:
            found.append(f"{claim} is in the reference and no longer in the catalogue")
            continue
        then, now = reference["claims"].get(claim, nothing), here["claims"][claim]
        if then["verdict"] != now["verdict"]:
            found.append(f"{claim}: {now['verdict']} ({now['reason']}); the reference: {then['verdict']}")
        for metric in sorted({*then["metrics"]} ^ {*now["metrics"]}):
            where = "the reference" if metric in then["metrics"] else "this run"
            found.append(f"{claim} {metric} was observed only in {where}")
        for metric in sorted({*then["metrics"]} & {*now["metrics"]}):
            criterion = claim_by_id(claim).criterion(metric)
            was, is_now = then["metrics"][metric]["mean"], now["metrics"][metric]["mean"]
            if not criterion.within(is_now, was):
                allowed = "" if was is None else f", tolerance {short(criterion.allowance(was))}"
                values = f"{short(is_now)}; the reference: {short(was)}"
                found.append(f"{claim} {metric}: {values} {criterion.unit}{allowed}")
    return found


def other_parameters(reference: dict, here: dict) -> list[str]:
    """Which notebooks ran with other parameters than the reference's: the first thing to look at."""
    return [
        f"{notebook} ran with {name}={now[name]}, the reference with {then[name]}"
        for notebook in sorted({*reference["provenance"]} & {*here["provenance"]})
        for then, now in [(side["provenance"][notebook].get("parameters", {}) for side in (reference, here))]
        for name in sorted(({*then} & {*now}) - INDIFFERENT)  # the others are newer than the reference, or gone
        if then[name] != now[name]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print verdicts and differences; 0: as the reference, 1: not, 2: the observations cannot be read."""
    parser = argparse.ArgumentParser("python -m nkdlib.compendium.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", choices=list(PROFILES), default="cpu")
    parser.add_argument("--write-reference", action="store_true", help="make this run the reference")
    options = parser.parse_args(arguments)
    profile = options.profile
    try:
        judgements = judge_all(profile)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(judgements)
    counts = Counter(judgement.verdict for judgement in judgements)
    print(f"\nprofile {profile}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
    if not PROFILES[profile].judged:
        print(f"{profile} is a first look and judges nothing; PROFILE=cpu does")
        return 0
    here = as_reference(judgements, profile)
    path = figures_root() / profile / REFERENCE
    if options.write_reference:
        if not here["provenance"]:
            print(f"error: nothing was observed; run make reproduce PROFILE={profile} first", file=sys.stderr)
            return 2
        print(f"written: {write_atomically(path, dumps(here))}")
        return 0
    reference = read_reference(profile)
    if reference is None:
        print(f"no reference is committed for {profile}: nothing to compare with")
        return 0
    for note in other_parameters(reference, here):
        print(f"note: {note}")
    found = differences(reference, here)
    print("\n".join(f"DIFFERS: {difference}" for difference in found) or "as in the committed reference")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
