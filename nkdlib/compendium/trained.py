"""Hand what torchrun trained on ImageNet and COCO to the judge, as observations at the profile paper.

python -m nkdlib.compendium.trained runs/scratch-* runs/boxes-*
make verify PROFILE=paper
"""

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path

from nkdlib.compendium.claims import claim_by_id
from nkdlib.compendium.results import Results
from nkdlib.tasks.places import figures_root

TOLD = {  # by task: the claim, its metric, which score that is; the data that it is about; its limit in parameters
    "classify": ("FG-1", "imagenet_top1", "accuracy", {"found": True, "classes": 1_000, "images": 50_000}, 2.65e6),
    "detect": ("FG-2", "coco_map", "map", {"found": True, "classes": 80, "images": 5_000}, 3.05e6),
}


def observe(folders: Iterable[Path]) -> list[Path]:
    """Write the observations of finished trainings, one a seed, in place of earlier ones.

    Args:
        folders: `--out` of each training by torchrun, with its result.json.

    Returns:
        The folders of results, one for each claim.

    Raises:
        FileNotFoundError: a training that has not ended.
        ValueError: one that is no evidence: of another task, data or size, of a network that no search found; two of
            one seed; a result that cannot be read.
    """
    trainings: dict[str, list[tuple[Path, dict]]] = {}
    for folder in map(Path, folders):
        try:
            result = json.loads((folder / "result.json").read_text())
            task = result["task"]
            if task not in TOLD:
                raise ValueError(f"a {task} observes nothing; give trainings of {' or '.join(TOLD)}")
            *_, score, asked, limit = TOLD[task]
            for name, wanted in asked.items():
                if result[name] != wanted:
                    raise ValueError(f"{name} is {result[name]}, the claim is about {wanted}")
            if result["params"] > limit:
                raise ValueError(f"params are {result['params']:,}, the claim is about at most {limit:,.0f}")
            kept = {name: result[name] for name in ("seed", "params", "macs", score)}
        except (ValueError, KeyError, TypeError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{folder}/result.json is no evidence: {why}") from error
        trainings.setdefault(task, []).append((folder, kept))
    written = []
    for task, trained in trainings.items():
        claim, metric, score, *_ = TOLD[task]
        results = Results(claim_by_id(claim).notebook, "paper", {"trainings": [str(folder) for folder, _ in trained]})
        for _, result in trained:
            results.observe(claim, metric, result.pop("seed"), result.pop(score), **result)
        written.append(results.write())
    return written


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser("nkdlib.compendium.trained", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "folders", type=Path, nargs="+", help="folders that nkdlib.compendium.torchrun classify and detect wrote"
    )
    os.environ.setdefault("NKD_FIGURES", str(figures_root()))
    try:
        written = observe(parser.parse_args().folders)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for folder in written:
        print(f"observed in {folder}; make verify PROFILE=paper judges it")


if __name__ == "__main__":
    main()
