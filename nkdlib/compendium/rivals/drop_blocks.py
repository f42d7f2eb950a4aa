"""Dropping whole blocks of MobileNetV2 from few photographs, the published rival, in short.

Wang and Wu, "Practical Network Acceleration with Tiny Sets", CVPR 2023 (arXiv 2202.07861): the block goes from which
the network recovers best for the latency that it saves. It recovers by 1x1 convolutions around the gap that learn to
mimic the teacher's features before the pooling. Then the whole network learns to mimic them (Wang, Zhu and Wu,
"Compressing Models with Few Samples", arXiv 2201.02620). Departures: fewer steps, Adam in place of SGD, and what is
left is measured on held-out crops.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from torch import nn

from nkdlib.neighbourhoods import Menu, Recipe, distill
from nkdlib.neighbourhoods.library import IDENTITY, TEACHER


def removable(network: nn.Module) -> list[str]:
    """The blocks of MobileNetV2 that are added to their input: without one the network still runs.

    >>> from torchvision.models import mobilenet_v2
    >>> [int(name.removeprefix("features.")) for name in removable(mobilenet_v2())]
    [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]
    """
    return [f"features.{n}" for n, block in enumerate(network.features) if getattr(block, "use_res_connect", False)]


def with_adaptors(network: nn.Module, name: str) -> tuple[str, nn.Sequential]:
    """The name of the layers around a dropped block up to the features, and these layers; adaptors learn alone.

    An adaptor follows the last convolution of each block before the gap that is as wide, and precedes the first
    convolution of each block after it, up to the one that is not added to its input. They begin as identities.
    """
    features, gap = network.features, int(name.removeprefix("features."))
    width = features[gap].out_channels
    first = next(n for n in range(gap, 0, -1) if not features[n].use_res_connect)
    last = next(n for n in range(gap, len(features)) if not features[n].use_res_connect)
    part = copy.deepcopy(features[first:]).requires_grad_(False)
    part[gap - first] = nn.Identity()
    for block in part[: gap - first]:
        block.conv[2] = nn.Sequential(OrderedDict(conv=block.conv[2], adaptor=_adaptor(width)))
    for block in part[gap - first + 1 : last - first + 1]:
        expand = block.conv[0]
        expand[0] = nn.Sequential(OrderedDict(adaptor=_adaptor(width), conv=expand[0]))
    return f"features.{first}:features.{len(features) - 1}", part


def _adaptor(channels: int) -> nn.Conv2d:
    adaptor = nn.Conv2d(channels, channels, 1, bias=False)
    nn.init.dirac_(adaptor.weight)
    return adaptor


def recovered_error(network: nn.Module, name: str, inputs: Iterable, recipe: Recipe) -> float:
    """The local error of the features that is left without a block, after its adaptors have learned.

    Args:
        network: a MobileNetV2.
        name: one of `removable`.
        inputs: batches of photographs.
        recipe: of the adaptors, with start="given" and a schedule that freezes BatchNorm.
    """
    run, part = with_adaptors(network, name)
    return distill(network, {run: part}, inputs, recipe)[run].local_error


def choose_dropped(menu: Menu, errors: Mapping[str, float], count: int) -> dict[str, str]:
    """Labels of a library: `count` blocks are dropped, those with the least error for each millisecond saved.

    >>> from nkdlib.neighbourhoods import Option
    >>> block = {"teacher": Option(0, {"latency_ms": 4}), "identity": Option(0.1, {"latency_ms": 0})}
    >>> choose_dropped(Menu({"a": block, "b": block}), {"a": 0.3, "b": 0.2}, 1)
    {'a': 'teacher', 'b': 'identity'}
    """

    def score(name: str) -> float:
        kept, gone = (menu.options[name][label].costs["latency_ms"] for label in (TEACHER, IDENTITY))
        return errors[name] / (kept - gone)

    dropped = sorted(errors, key=score)[:count]
    return {name: IDENTITY if name in dropped else TEACHER for name in menu.options}
