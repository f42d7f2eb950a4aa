"""What the two papers claim, with the criterion each claim is judged by, written before any result.

ND: Shao, Moroz, Eban, Movshovitz-Attias, "Neighbourhood Distillation", arXiv 2010.01189.
FiGS: Chaudhuri, Eban, Li, Moroz, Movshovitz-Attias, "Fine-Grained Stochastic Architecture Search",
arXiv 2006.09581. A claim is judged on the paper's own method; what goes beyond it has rows of its own, the
extensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nkdlib.compendium.criteria import Criterion

ND_ABSTRACT = "abstract, arXiv 2010.01189v2"
ND_PAGE = "abstract on the paper's publication page; that of arXiv's second version gives no number"
FIGS_ABSTRACT = "abstract, arXiv 2006.09581"

SCALED = {"cpu": "scaled", "gpu": "scaled", "paper": "paper-scale"}
SMALL = ("smoke", "cpu", "gpu")  # where the scaled stand-ins for the ImageNet and COCO numbers are measured
SPACES = ("mixed_kernel", "resnet_filters", "darts_cell")


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper with a number or an order in it."""

    id: str
    paper: Literal["ND", "FiGS"]
    title: str
    wording: str  # our own words
    published: str
    source: str  # where the published value stands
    metric: str  # what is measured here, in words
    criteria: tuple[Criterion, ...]
    notebook: str | None
    extension: bool = False
    evidence: Mapping[str, str] = field(default_factory=lambda: SCALED)  # profile -> evidence level

    def criterion(self, metric: str) -> Criterion:
        """The criterion on `metric`. Raises `ValueError` naming the claim's metrics for any other name."""
        for criterion in self.criteria:
            if criterion.metric == metric:
                return criterion
        names = ", ".join(c.metric for c in self.criteria)
        raise ValueError(f"metric (={metric!r}) is not one of {self.id}'s: {names}")


def claim_by_id(claim_id: str) -> Claim:
    """The claim called `claim_id`. Raises `ValueError` naming the known ids for any other."""
    for claim in CLAIMS:
        if claim.id == claim_id:
            return claim
    raise ValueError(f"claim_id (={claim_id!r}) is not in the catalogue: {', '.join(c.id for c in CLAIMS)}")


def _above(metric: str, bound: float, words: str, unit: str, reaches: float | None = None, **more) -> Criterion:
    return Criterion(metric, "above", bound, reaches, words=words, unit=unit, **more)


def _below(metric: str, bound: float, words: str, unit: str, reaches: float | None = None, **more) -> Criterion:
    return Criterion(metric, "below", bound, reaches, words=words, unit=unit, **more)


def _faster(metric: str, words: str, reaches: float | None = None) -> Criterion:
    """A ratio of seconds above one; seconds differ between machines, hence a relative tolerance."""
    return _above(metric, 1.0, words, "x", reaches=reaches, tolerance=0.3, relative=True)


ND_CLAIMS = (
    Claim(
        id="ND-0",
        paper="ND",
        title="Sub-networks can be replaced independently",
        wording="A trained network can be split into neighbourhoods, each replaced by a student trained "
        "alone to imitate it; recomposed, the network still works.",
        published="no number",
        source=ND_ABSTRACT,
        metric="accuracy lost to students of half the inner width, and noise that the network bears",
        criteria=(
            _below(
                "one_drop_points",
                1.0,
                "mean accuracy lost when one neighbourhood is replaced by a student trained alone from "
                "random weights at half the inner width",
                "points",
                tolerance=0.5,
            ),
            _below(
                "all_drop_points",
                2.0,
                "accuracy lost when all neighbourhoods are replaced at once, BatchNorm re-estimated, no "
                "end-to-end step",
                "points",
                tolerance=1.0,
            ),
            _above(
                "noise_threshold",
                0.2,
                "largest relative noise, injected into every neighbourhood's output at once, that costs at "
                "most one point",
                "relative noise",
                tolerance=0.1,
            ),
        ),
        notebook="01_local_replacement",
    ),
    Claim(
        id="ND-1",
        paper="ND",
        title="Neighbourhood Distillation speeds up knowledge distillation",
        wording="Distilling neighbourhoods independently, and hence in parallel, gets to the quality of "
        "end-to-end distillation sooner.",
        published="up to 4.6x at the same quality",
        source=ND_PAGE,
        metric="device-seconds to equal accuracy, end to end over ND's critical path",
        criteria=(
            _faster(
                "speedup_critical_path",
                "device-seconds of end-to-end distillation to its own final, validation-tuned quality minus "
                "one point, over ND's critical path (one worker per neighbourhood; the teacher's pass, "
                "recomposition and fine-tuning included) to the same accuracy, both from random weights",
                reaches=4.6,
            ),
        ),
        notebook="02_distillation_speed",
    ),
    Claim(
        id="ND-2",
        paper="ND",
        title="Neighbourhoods are re-used for architecture search",
        wording="Neighbourhoods distilled once can be combined, by choosing locally, into any network of an "
        "exponentially large space.",
        published="an exponentially large space; no number",
        source=ND_ABSTRACT,
        metric="how well local errors rank recomposed networks, what that gains, and what the next one costs",
        criteria=(
            _above(
                "kendall_tau",
                0.5,
                "Kendall's tau between the sum of local errors and recomposed accuracy, random combinations",
                "tau",
                reaches=0.8,
                tolerance=0.1,
            ),
            _above(
                "exact_minus_random_points",
                0.0,
                "accuracy of the architecture chosen by local errors minus that of random choices under the "
                "same budget",
                "points",
                tolerance=2.0,
            ),
            _above(
                "cost_ratio",
                10.0,
                "seconds to distill one more architecture end to end, over seconds to choose and recompose it "
                "from the library",
                "x",
                reaches=100.0,
                tolerance=0.5,
                relative=True,
            ),
        ),
        notebook="03_student_search",
    ),
    Claim(
        id="ND-3",
        paper="ND",
        title="Neighbourhoods learn from synthetic data",
        wording="Because a neighbourhood is a simpler function than the whole network, it can be trained on "
        "synthetic data where the deeper network cannot.",
        published="no number",
        source=ND_ABSTRACT,
        metric="accuracy from noise images, against end-to-end distillation and the teacher",
        criteria=(
            _above(
                "nd_minus_e2e_noise_points",
                0.0,
                "accuracy of ND minus that of end-to-end distillation, from equal random weights on the same "
                "noise images",
                "points",
                reaches=40.0,
                tolerance=8.0,
            ),
            _below(
                "teacher_gap_points",
                20.0,
                "accuracy of the teacher minus that of the student distilled by ND from noise",
                "points",
                reaches=4.0,
                tolerance=5.0,
            ),
        ),
        notebook="04_synthetic_data",
    ),
)

FIGS_CLAIMS = (
    Claim(
        id="FG-1",
        paper="FiGS",
        title="FiGS finds parameter-efficient ImageNet networks",
        wording="The search finds a network of 2.6 million parameters that classifies ImageNet at the state "
        "of the art for its size.",
        published="75.4 % top-1 with 2.6M parameters",
        source=FIGS_ABSTRACT,
        metric="ImageNet top-1; beside it, at small scale, accuracy over uniform width",
        criteria=(
            _above(
                "imagenet_top1",
                74.9,
                "ImageNet top-1 of the found network with at most 2.6M parameters",
                "%",
                tolerance=0.5,
                profiles=("paper",),
            ),
            _above(
                "figs_minus_uniform_points",
                0.0,
                "accuracy of the found network minus that of uniform width at equal cost, both retrained",
                "points",
                tolerance=1.0,
                profiles=SMALL,
                decides=False,  # a small data set cannot decide a claim about ImageNet
            ),
        ),
        notebook="05_figs_classification",
    ),
    Claim(
        id="FG-2",
        paper="FiGS",
        title="FiGS backbones detect better",
        wording="Under an SSDLite head, FiGS backbones reach significantly higher COCO mAP than MobileNetV3 "
        "and MnasNet.",
        published="25.8 COCO mAP with 3.0M parameters",
        source=FIGS_ABSTRACT,
        metric="COCO mAP; at small scale, the margins over MobileNetV3 and MnasNet at equal parameters",
        criteria=(
            _above(
                "coco_map",
                25.3,
                "COCO mAP with SSDLite and at most 3.0M parameters",
                "mAP",
                tolerance=0.5,
                profiles=("paper",),
            ),
            *(
                _above(
                    f"figs_minus_{rival.lower()}_map",
                    0.0,
                    f"mAP of the FiGS backbone minus that of {rival} at equal parameters under one recipe; "
                    "three seeds, since every seed trains three detectors",
                    "mAP",
                    tolerance=2.0,
                    seeds=3,
                    profiles=SMALL,
                )
                for rival in ("MobileNetV3", "MnasNet")
            ),
        ),
        notebook="06_figs_detection",
    ),
    Claim(
        id="FG-3",
        paper="FiGS",
        title="FiGS matches or outperforms the original searches",
        wording="In three search spaces, FiGS matches or outperforms the algorithm that each came with.",
        published="matches or outperforms in three spaces",
        source=FIGS_ABSTRACT,
        metric="accuracy minus that of each space's original search algorithm at equal cost",
        criteria=(
            _above(
                "worst_margin_points",
                -0.5,
                "the smallest of the three spaces' margins over their original algorithms",
                "points",
                reaches=0.0,
                tolerance=1.0,
            ),
            *(
                _above(
                    f"figs_minus_original_points_{space}",
                    -0.5,
                    f"accuracy minus that of the original algorithm in the space {space}, at equal cost",
                    "points",
                    reaches=0.0,
                    tolerance=1.0,
                )
                for space in SPACES
            ),
        ),
        notebook="05_figs_classification",
    ),
)

EXTENSIONS = (
    Claim(
        id="ND-1c",
        paper="ND",
        title="Closed form: one worker overtakes end-to-end distillation",
        wording="Channels chosen exactly and the last convolution solved by ridge regression give a student "
        "that hardly needs training.",
        published="not in the paper",
        source="ours",
        metric="device-seconds to equal accuracy, end to end from random weights over ND from solved ones",
        criteria=(
            _faster(
                "closed_form_ratio",
                "device-seconds of end-to-end distillation from random weights to its quality minus one "
                "point, over those of ND from solved weights to the same accuracy on one worker",
                reaches=10.0,
            ),
        ),
        notebook="02_distillation_speed",
        extension=True,
    ),
    *(
        Claim(
            id=claim_id,
            paper="ND",
            title=f"Speed-up when both start from {start} weights",
            wording=f"ND stays ahead when end-to-end distillation, too, starts from {start} weights.",
            published="not in the paper",
            source="ours",
            metric=f"as ND-1, both methods from {start} weights",
            criteria=(
                _faster(
                    f"speedup_{start}",
                    "device-seconds of end-to-end distillation over ND's critical path to equal accuracy, "
                    f"both from {start} weights",
                ),
            ),
            notebook="02_distillation_speed",
            extension=True,
        )
        for claim_id, start in (("ND-1e", "solved"), ("ND-1p", "copied"))
    ),
)

CLAIMS: tuple[Claim, ...] = (*ND_CLAIMS, *FIGS_CLAIMS, *EXTENSIONS)
