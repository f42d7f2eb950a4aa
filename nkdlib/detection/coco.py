"""Images with boxes in COCO's layout: a folder of images, and a JSON file with sizes, boxes and categories.

Every entry is checked when the file is opened. A wrong entry is an error or is left out by request, never repaired,
except that a box which sticks out of its image is clipped.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nkdlib.data import DataDamaged, DataNotFound
from nkdlib.data.images import check_positions
from nkdlib.data.readers import read_image
from nkdlib.detection.annotations import read_annotations
from nkdlib.tasks.checks import check_seed

Target = dict[str, Tensor | int]


def coco_root(data: str | Path) -> Path | None:
    """Find the folder in COCO's layout that `data` names, as a path or below NKD_DATA; None if there is none.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "annotations").mkdir()
    >>> coco_root(folder) == folder.resolve(), coco_root("nowhere")
    (True, None)
    """
    here = os.environ.get("NKD_DATA")
    paths = [Path(data), *([Path(here) / data] if here else [])]
    return next((path.resolve() for path in paths if (path / "annotations").is_dir()), None)


@dataclass(frozen=True, eq=False)
class CocoImages:
    """Images of any size with their boxes; decoded when asked for, cheap to subset and to send to a process.

    `len` and indexing as a sequence: `images[i]` is (pixels uint8 (3, H, W), target) with the target a dict of
    "boxes" float32 (n, 4), x1 y1 x2 y2 in pixels; "labels" int64 (n,), 1 to K; "image_id" int; "iscrowd" bool (n,);
    "area" float32 (n,), in pixels. Label k is `classes[k - 1]` and COCO's category `category_ids[k - 1]`; 0 is left for
    the background.
    """

    folder: Path
    files: tuple[str, ...]  # below the folder, N
    file_sizes: tuple[int, ...]  # in bytes
    image_ids: tuple[int, ...]
    sizes: np.ndarray  # int64 (N, 2): width, height
    owners: np.ndarray  # int64 (M,): the position of each box's image, ascending
    boxes: np.ndarray  # float64 (M, 4): x1 y1 x2 y2
    labels: np.ndarray  # int64 (M,)
    iscrowd: np.ndarray  # bool (M,)
    area: np.ndarray  # float64 (M,)
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    dropped: tuple[str, ...] = ()  # what was wrong with the entries that `open` left out

    @classmethod
    def open(cls, images_folder: str | Path, annotations_json: str | Path, drop: bool = False) -> "CocoImages":
        """Read an `instances_*.json` and check it against the folder of its images.

        An annotation needs id, image_id, category_id and bbox; area is by default the box's, iscrowd 0.
        drop: leave out wrong entries, listed in `.dropped`; an image takes its boxes with it.
        Raises ValueError with the first ten problems, DataNotFound for a missing folder or file, DataDamaged for a
        file without COCO's three lists. Images are decoded when read, and may raise DataDamaged then.
        """
        folder, path = Path(images_folder).resolve(), Path(annotations_json).resolve()
        if not folder.is_dir():
            raise DataNotFound(f"images_folder (={folder}) must be a folder that exists")
        categories, images, boxes, problems = read_annotations(path, folder)
        if problems and not drop:
            listed = "".join(f"\n  {problem}" for problem in problems[:10])
            more = f"\n  and {len(problems) - 10:,} more" if len(problems) > 10 else ""
            raise ValueError(
                f"{path} has {len(problems):,} problem(s):{listed}{more}\n"
                "Mend the file, or leave them out with drop=True"
            )
        return cls(
            folder,
            files=tuple(images.file_name),
            file_sizes=tuple(images.bytes),
            image_ids=tuple(images.id),
            sizes=np.array(images[["width", "height"]], np.int64),
            owners=np.array(boxes.image, np.int64),
            boxes=np.array(boxes[["x1", "y1", "x2", "y2"]], np.float64),
            labels=np.array(boxes.label, np.int64),
            iscrowd=np.array(boxes.iscrowd, bool),
            area=np.array(boxes.area, np.float64),
            classes=tuple(map(str, categories.name)),
            category_ids=tuple(categories.id),
            dropped=tuple(problems),
        )

    @classmethod
    def load(cls, root: str | Path, split: str, drop: bool = False) -> "CocoImages":
        """Open one split of a data set in COCO's layout: root/annotations/instances_<split>*.json, root/<split>*/.

        root: see `coco_root`; split: "train" or "val", a year may follow in the files' names; drop: see `open`.
        Raises DataNotFound where there is no or more than one such split, and what `open` raises.
        """
        folder = coco_root(root)
        found = sorted((folder or Path(root)).glob(f"annotations/instances_{split}*.json"))
        if len(found) != 1:
            raise DataNotFound(
                f"root (={root}) must be a folder, or the name of one in NKD_DATA, with one file "
                f"annotations/instances_{split}*.json, and with its images in a folder such as {split}2017; "
                f"found {', '.join(path.name for path in found) or 'none'}"
            )
        return cls.open(folder / found[0].stem.removeprefix("instances_"), found[0], drop)

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        crowds = f", {self.iscrowd.sum():,} of them crowds" if self.iscrowd.any() else ""
        dropped = f", {len(self.dropped):,} problems left out" if self.dropped else ""
        what = f"{len(self):,} images, {len(self.boxes):,} boxes{crowds}, {len(self.classes)} classes{dropped}"
        return f"CocoImages({self.folder.name}: {what}, {self.fingerprint[:8]})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images' names, bytes and ids, of boxes and categories; not of where the folder lies."""
        head = (self.files, self.file_sizes, self.image_ids, self.classes, self.category_ids)
        digest = hashlib.sha256(repr(head).encode())
        for part in (self.sizes, self.owners, self.boxes, self.labels, self.iscrowd, self.area):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def __getitem__(self, place: int) -> tuple[Tensor, Target]:
        return self.read(place), self.target(place)

    def read(self, place: int, size: int | None = None) -> Tensor:
        """Decode one image to uint8 (3, H, W), or resized to (3, size, size); raises DataDamaged."""
        path = self.folder / self.files[self._checked(place)]
        width, height = self.sizes[place]
        about = f"{path} (image {self.image_ids[place]})"
        image = read_image(path, about)
        if image.size != (width, height):
            is_size = "x".join(map(str, image.size))
            raise DataDamaged(
                f"{about} is {is_size} pixels as shown, its annotations are for {width}x{height}; fetch it again or "
                "mend them"
            )
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def target(self, place: int, crowds: bool = True) -> Target:
        """The boxes of one image, see the class; crowds: with regions marked so, which training leaves out."""
        rows = slice(*np.searchsorted(self.owners, [self._checked(place), place + 1]))
        kept = slice(None) if crowds else ~self.iscrowd[rows]
        return {
            "boxes": torch.from_numpy(self.boxes[rows][kept]).float(),
            "labels": torch.from_numpy(self.labels[rows][kept].copy()),
            "image_id": self.image_ids[place],
            "iscrowd": torch.from_numpy(self.iscrowd[rows][kept].copy()),
            "area": torch.from_numpy(self.area[rows][kept]).float(),
        }

    def _checked(self, place: int) -> int:
        if not 0 <= place < len(self):
            raise IndexError(f"image {place} of {len(self):,}; count from 0")
        return place

    def subset(self, indices: int | list[int] | Tensor, seed: int | None = None) -> "CocoImages":
        """Some of the images with their boxes and all classes.

        indices: positions in the order wanted, or a mask, or a number: the first so many, or with a seed so many drawn
        at random without replacement (in their old order). Raises ValueError for a position or number out of range, or
        given twice, and for a mask of another length.
        """
        if isinstance(indices, Integral):
            if not 0 < indices <= len(self):
                raise ValueError(f"indices (={indices}) must be 1 to the number of {self!r}")
            if seed is not None:
                check_seed(seed)
            order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
            indices = np.sort(order[:indices])
        chosen = check_positions(self, indices).numpy()
        if len(np.unique(chosen)) < len(chosen):
            raise ValueError(f"indices (={chosen.tolist()}) must be different positions of {self!r}")
        bounds = np.searchsorted(self.owners, np.stack([chosen, chosen + 1]))  # (2, n)
        rows = np.concatenate([np.arange(*bound) for bound in bounds.T])
        of_boxes = {name: getattr(self, name)[rows] for name in ("boxes", "labels", "iscrowd", "area")}
        return replace(
            self,
            **{name: tuple(getattr(self, name)[i] for i in chosen) for name in ("files", "file_sizes", "image_ids")},
            sizes=self.sizes[chosen],
            owners=np.repeat(np.arange(len(chosen)), bounds[1] - bounds[0]),
            **of_boxes,
        )

    def to_coco(self) -> dict[str, list]:
        """The ground truth as COCO's JSON has it, crowds included: "images", "annotations", "categories".

        Boxes are x y width height in pixels of the images as they lie on disk; annotations are numbered anew from 1,
        because COCO's evaluation takes the id 0 for none.
        """
        widths, heights = self.sizes.T.tolist()
        images = {"id": self.image_ids, "file_name": self.files, "width": widths, "height": heights}
        annotations = {
            "id": range(1, len(self.boxes) + 1),
            "image_id": [self.image_ids[owner] for owner in self.owners],
            "category_id": [self.category_ids[label - 1] for label in self.labels],
            "bbox": np.hstack([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]]).tolist(),
            "area": self.area.tolist(),
            "iscrowd": self.iscrowd.astype(int).tolist(),
        }
        categories = {"id": self.category_ids, "name": self.classes}
        parts = {"images": images, "annotations": annotations, "categories": categories}
        return {
            part: [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            for part, columns in parts.items()
        }
