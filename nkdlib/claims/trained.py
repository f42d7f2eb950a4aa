"""Hand what `nkdlib.torchrun` trained on ImageNet and COCO to the judge, as observations at the profile paper.

python -m nkdlib.claims.trained runs/scratch-* runs/boxes-*
make verify PROFILE=paper
"""

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path

from nkdlib.claims.catalogue import claim_by_id
from nkdlib.claims.observations import Results
from nkdlib.runtime.places import figures_root

TOLD = {  # by task: the claim, its metric, which score it is; what the claim is about
    "classify": (("FG-1", "imagenet_top1", "accuracy"), {"classes": 1_000, "images": 50_000, "params": 2.65e6}),
    "detect": (("FG-2", "coco_map", "map"), {"classes": 80, "images": 5_000, "params": 3.05e6}),
}


def observe(folders: Iterable[Path]) -> list[Path]:
    """Write the observations of finished trainings, one a seed, in place of earlier ones.

    Args:
        folders: `--out` of each training by torchrun, with its result.json.

    Returns:
        The folders of results, one for each claim.

    Raises:
        ValueError: a training that is no evidence: of another task, data or size; two of one seed.
    """
    found: dict[str, list[tuple[Path, dict]]] = {}
    for folder in map(Path, folders):
        result = json.loads((folder / "result.json").read_text())
        if result["task"] not in TOLD:
            raise ValueError(f"{folder} is a {result['task']}, which observes nothing; give {' or '.join(TOLD)}")
        _, asked = TOLD[result["task"]]
        for name, wanted in asked.items():
            if result[name] > wanted or (name != "params" and result[name] != wanted):
                limit = "at most " * (name == "params")
                raise ValueError(f"{folder} has {result[name]:,} {name}, the claim is about {limit}{wanted:,.0f}")
        found.setdefault(result["task"], []).append((folder, result))
    written = []
    for task, trained in found.items():
        (claim, metric, score), _ = TOLD[task]
        results = Results(claim_by_id(claim).notebook, "paper", {"trainings": [str(folder) for folder, _ in trained]})
        for _, result in trained:
            spent = {name: result[name] for name in ("params", "macs")}
            results.observe(claim, metric, result["seed"], result[score], **spent)
        written.append(results.write())
    return written


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser("nkdlib.claims.trained", description=__doc__.partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="folders that nkdlib.torchrun classify and detect wrote")
    os.environ.setdefault("NKD_FIGURES", str(figures_root()))
    for folder in observe(parser.parse_args().folders):
        print(f"observed in {folder}; make verify PROFILE=paper judges it")


if __name__ == "__main__":
    main()
