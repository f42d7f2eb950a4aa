"""Images with boxes: COCO folders good and bad, batches and their augmentation, generated scenes.

Behind claim FG-2.
"""

import contextlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pycocotools.coco import COCO

from nkdlib.compendium import scenes
from nkdlib.compendium.scenes import write_scenes
from nkdlib.data import DataDamaged, DataNotFound, Images
from nkdlib.detection import CocoImages, SquareImages, coco_root, ssd_augmentation
from nkdlib.detection.batches import augmented
from nkdlib.networks.module import seeded
from nkdlib.tasks.keys import Ingredients


def in_pycocotools(content: dict) -> COCO:
    """Return what COCO's own loader makes of annotations."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def annotation(id=1, image_id=7, category_id=3, bbox=(4, 2, 10, 8), **more):
    return {"id": id, "image_id": image_id, "category_id": category_id, "bbox": list(bbox)} | more


class Folder:
    """Three pictures of 40x20 pixels, one of them gray, in a folder whose name has a space, and their annotations."""

    def __init__(self, root: Path):
        self.pictures, self.path = root / "my pictures", root / "instances.json"
        self.pictures.mkdir()
        for number, mode in enumerate(("RGB", "RGB", "L")):
            Image.new(mode, (40, 20), 50 if mode == "L" else (200, 100, number)).save(self.pictures / f"p{number}.png")
        names = {7: "p0.png", 5: "p1.png", 9: "p2.png"}
        self.content = {
            "images": [{"id": id, "file_name": name, "width": 40, "height": 20} for id, name in names.items()],
            "annotations": [
                annotation(id=11, image_id=9, category_id=90, bbox=(1, 2, 3, 4)),
                annotation(id=12, area=60.5, iscrowd=0),
                annotation(id=13, bbox=(0, 0, 40, 20), iscrowd=1, area=500),
                annotation(id=14, category_id=90, bbox=(30, -5, 20, 10)),
            ],
            "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        }

    def open(self, **options) -> CocoImages:
        self.path.write_text(json.dumps(self.content))
        return CocoImages.open(self.pictures, self.path, **options)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_a_folder_is_read(folder):
    images = folder.open()
    assert len(images) == 3 and images.classes == ("car", "toothbrush") and images.category_ids == (3, 90)
    pixels, target = images[0]
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 20, 40) and pixels[:, 0, 0].tolist() == [200, 100, 0]
    assert target["boxes"].dtype == target["area"].dtype == torch.float32 and target["labels"].dtype == torch.int64
    assert target["boxes"].tolist() == [[4, 2, 14, 10], [0, 0, 40, 20], [30, 0, 40, 5]]  # the last one clipped
    assert target["labels"].tolist() == [1, 1, 2] and target["image_id"] == 7
    assert target["iscrowd"].tolist() == [False, True, False]
    assert target["area"].tolist() == [60.5, 500, 50]  # the last one of the box, for want of another
    assert images.target(0, crowds=False)["labels"].tolist() == [1, 2]
    without = images.target(1)
    assert without["boxes"].shape == (0, 4) and without["labels"].shape == without["iscrowd"].shape == (0,)
    assert images[2][0].unique().tolist() == [50]  # gray becomes RGB
    assert [target["image_id"] for _, target in images] == [7, 5, 9]  # a sequence that ends


def test_it_goes_back_into_coco(folder):
    images = folder.open()
    coco = in_pycocotools(images.to_coco())
    assert sorted(coco.getImgIds()) == [5, 7, 9] and coco.getCatIds() == [3, 90]
    assert [a["bbox"] for a in coco.imgToAnns[7]] == [[4, 2, 10, 8], [0, 0, 40, 20], [30, 0, 10, 5]]
    assert [a["category_id"] for a in coco.imgToAnns[7]] == [3, 3, 90]
    assert coco.getAnnIds(iscrowd=True) == [2] and min(coco.getAnnIds()) == 1
    folder.content = images.to_coco()
    again = folder.open()
    assert again.fingerprint == images.fingerprint
    assert json.dumps(again.to_coco()) == json.dumps(images.to_coco())


def bad_image(content, **changes):
    content["images"][1] |= changes


def bad_annotation(content, **changes):
    content["annotations"][1] |= changes


BAD = {
    "file missing": (bad_image, {"file_name": "gone.png"}, r"image 5: there is no file .*gone\.png"),
    "file empty": (bad_image, {"file_name": "empty.png"}, r"image 5: its file .*empty\.png is empty"),
    "no width": (bad_image, {"width": None}, "image 5: missing width"),
    "width 0": (bad_image, {"width": 0}, r"image 5: width \(=0\)"),
    "image twice": (bad_image, {"id": 7}, "image 7: its id was there before"),
    "image id": (bad_image, {"id": "five"}, "image 'five': its id must be an integer"),
    "box empty": (bad_annotation, {"bbox": [1, 1, 0, 5]}, r"annotation 12: bbox .* is empty"),
    "box negative": (bad_annotation, {"bbox": [9, 9, -3, 5]}, r"annotation 12: bbox .* is empty"),
    "box outside": (bad_annotation, {"bbox": [40, 1, 5, 5]}, r"annotation 12: .* leaves nothing within .*, 40x20"),
    "box a sliver": (bad_annotation, {"bbox": [39.99999999, 1, 5, 5]}, r"annotation 12: .* leaves nothing within"),
    "box NaN": (bad_annotation, {"bbox": [1, 1, float("nan"), 5]}, r"annotation 12: .* four numbers"),
    "box short": (bad_annotation, {"bbox": [1, 1, 4]}, r"annotation 12: .* four numbers"),
    "no box": (bad_annotation, {"bbox": None}, "annotation 12: missing bbox"),
    "category": (bad_annotation, {"category_id": 4}, "annotation 12: there is no category 4"),
    "image": (bad_annotation, {"image_id": 8}, "annotation 12: there is no image 8"),
    "box twice": (bad_annotation, {"id": 11}, "annotation 11: its id was there before"),
    "area": (bad_annotation, {"area": -1}, r"annotation 12: area \(=-1\)"),
    "crowd a string": (bad_annotation, {"iscrowd": "0"}, r"annotation 12: iscrowd \(='0'\) must be 0 or 1"),
    "box of strings": (bad_annotation, {"bbox": ["4", "2", "10", "8"]}, r"annotation 12: bbox .* four numbers"),
    "area a string": (bad_annotation, {"area": "60.5"}, r"annotation 12: area \(='60.5'\)"),
    "width a string": (bad_image, {"width": "40"}, r"image 5: width \(='40'\)"),
    "category a string": (bad_annotation, {"category_id": "3"}, "annotation 12: there is no category '3'"),
    "image a list": (bad_annotation, {"image_id": [7]}, r"annotation 12: there is no image \[7\]"),
}


@pytest.mark.parametrize(("change", "changes", "message"), BAD.values(), ids=BAD)
def test_a_bad_entry_is_named_or_left_out(folder, change, changes, message):
    (folder.pictures / "empty.png").touch()
    change(folder.content, **changes)
    with pytest.raises(ValueError, match=f"1 problem.*\n  {message}"):
        folder.open()
    images = folder.open(drop=True)
    assert len(images.dropped) == 1 and "1 problems left out" in repr(images)
    assert (len(images), len(images.boxes)) == ((2, 4) if change is bad_image else (3, 3))


def test_lists_may_be_empty(folder):
    folder.content["annotations"] = []
    images = folder.open()
    assert len(images) == 3 and images.target(0)["boxes"].shape == (0, 4) and images.to_coco()["annotations"] == []
    folder.content["images"] = []
    assert len(folder.open()) == 0


def test_an_image_takes_its_boxes_with_it(folder):
    (folder.pictures / "p0.png").unlink()
    images = folder.open(drop=True)
    assert [str(problem) for problem in images.dropped] == [f"image 7: there is no file {folder.pictures / 'p0.png'}"]
    assert images.image_ids == (5, 9) and images.target(1)["boxes"].tolist() == [[1, 2, 4, 6]]


def test_ten_problems_are_listed_and_all_counted(folder):
    folder.content["annotations"] = [annotation(id=i, bbox=(0, 0, 0, 0)) for i in range(1, 13)]
    with pytest.raises(ValueError, match="has 12 problem") as error:
        folder.open()
    assert "annotation 10:" in str(error.value) and "annotation 11:" not in str(error.value)
    assert "and 2 more" in str(error.value) and "drop=True" in str(error.value)
    assert len(folder.open(drop=True).boxes) == 0


def test_what_is_no_annotations_file_is_said(folder):
    with pytest.raises(DataNotFound, match=r"instances\.json"):
        CocoImages.open(folder.pictures, folder.path)
    folder.path.write_text("[1")
    with pytest.raises(DataDamaged, match=r"instances\.json is not JSON"):
        CocoImages.open(folder.pictures, folder.path)
    categories = folder.content.pop("categories")
    with pytest.raises(DataDamaged, match="'categories'"):
        folder.open()
    folder.content["categories"] = categories
    folder.open()
    with pytest.raises(DataNotFound, match="images_folder"):
        CocoImages.open(folder.pictures / "elsewhere", folder.path)


def test_a_file_that_is_not_the_image_is_named_when_decoded(folder, monkeypatch):
    images = folder.open()
    (folder.pictures / "p1.png").write_bytes((folder.pictures / "p0.png").read_bytes()[:50])
    Image.new("RGB", (20, 40)).save(folder.pictures / "p2.png")
    with pytest.raises(DataDamaged, match=r"p1\.png \(image 5\) is damaged .*: no readable image"):
        images[1]
    with pytest.raises(
        DataDamaged, match=r"p2\.png \(image 9\) is 20x40 pixels as shown, its annotations are for 40x20"
    ):
        images[2]
    for mode in ("I;16", "F"):
        Image.new(mode, (40, 20)).save(folder.pictures / "p1.png", "TIFF")
        with pytest.raises(DataDamaged, match=rf"p1\.png \(image 5\) \(mode {mode}\) has more than eight bits"):
            images[1]
    note = PngInfo()
    note.add_text("note", "x" * 2_000_000, zip=True)
    Image.new("RGB", (40, 20)).save(folder.pictures / "p1.png", pnginfo=note)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    for place in (0, 1):  # more than twice as many pixels as Pillow takes, more text
        with pytest.raises(
            DataDamaged, match=rf"p{place}\.png \(image .\) is damaged .*: no readable image .*(exceeds|too large)"
        ):
            images[place]


def test_an_image_is_turned_as_its_annotations_see_it(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (20, 40))
    stored.paste((255, 255, 255), (0, 0, 20, 10))  # the top as stored, the right as shown
    stored.save(folder.pictures / "p0.png", exif=exif)
    pixels = folder.open()[0][0]
    assert pixels.shape == (3, 20, 40) and (pixels[:, :, 30:] == 255).all() and not pixels[:, :, :30].any()


def test_subsets_and_fingerprints(folder):
    images = folder.open()
    part = images.subset([2, 0])
    assert part.image_ids == (9, 7) and part.classes == images.classes
    for place, old in enumerate((2, 0)):
        pixels, target = part[place]
        assert torch.equal(pixels, images[old][0])
        assert str(target) == str(images.target(old))
    assert images.subset(2).image_ids == (7, 5)
    assert images.subset(2, seed=1).fingerprint == images.subset(2, seed=1).fingerprint != images.fingerprint
    assert images.subset([True, False, True]).image_ids == images.subset(torch.tensor([0, 2])).image_ids == (7, 9)
    assert part.subset(part.sizes[:, 0] == 40).image_ids == part.image_ids
    for wrong in ([0, 0], [3], [], 4, 0, [0.5, 1.7], [False, True], [[True], [False], [True]]):
        with pytest.raises(ValueError, match="indices"):
            images.subset(wrong)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.fingerprint == images.fingerprint and torch.equal(copy[0][0], images[0][0])
    assert Ingredients().canonical(images, "images")["fingerprint"] == images.fingerprint
    before = images.fingerprint
    folder.content["annotations"][0]["bbox"][0] += 0.5
    assert folder.open().fingerprint != before
    folder.content["annotations"][0]["bbox"][0] -= 0.5
    Image.new("RGB", (40, 20), (1, 2, 3)).save(folder.pictures / "p0.png", compress_level=0)
    assert folder.open().fingerprint != before


def test_squares_scale_boxes_along(folder):
    squares = SquareImages(folder.open(), 10)
    target = squares.target(0)
    assert target["boxes"].tolist() == [[1, 1, 3.5, 5], [7.5, 0, 10, 2.5]]  # by 1/4 and 1/2, without the crowd
    assert (target["boxes"] * squares.scales[0]).tolist() == [[4, 2, 14, 10], [30, 0, 40, 5]]
    (found,) = squares.on_disk([{"image_id": target["image_id"], "boxes": target["boxes"], "scores": [0.5, 0.4]}])
    assert found["boxes"].tolist() == [[4, 2, 14, 10], [30, 0, 40, 5]] and found["scores"] == [0.5, 0.4]
    assert squares.pixels.shape == (3, 3, 10, 10) and squares.pixels.dtype == torch.uint8
    assert squares.pixels[0, :, 5, 5].tolist() == [200, 100, 0]
    assert len(pickle.dumps(squares)) < 5000 and "pixels" not in vars(pickle.loads(pickle.dumps(squares)))
    assert squares.fingerprint != SquareImages(squares.images, 11).fingerprint


def as_text(batches) -> str:
    return str([(pixels.sum((1, 2, 3)).tolist(), targets) for pixels, targets in batches])


def test_batches_follow_from_the_seed_alone(folder):
    squares = SquareImages(folder.open(), 16)
    state = torch.get_rng_state(), str(np.random.get_state())
    options = {"steps": 5, "augment": ssd_augmentation(16)}
    first = squares.batches(2, seed=3, **options)
    text = as_text(first)
    assert len(first) == 5 and text == as_text(first) == as_text(squares.batches(2, seed=3, **options))
    assert text != as_text(squares.batches(2, seed=4, **options))
    assert torch.equal(torch.get_rng_state(), state[0]) and str(np.random.get_state()) == state[1]
    ids = [[t["image_id"] for t in targets] for _, targets in first]
    plain = squares.batches(2, steps=5, seed=3)
    long = squares.batches(3, steps=20, seed=0)
    assert len({tuple(t["image_id"] for t in targets) for _, targets in long}) > 2  # every epoch has its own order
    assert ids == [[t["image_id"] for t in targets] for _, targets in plain]  # augmentation leaves the order alone
    in_order = [
        (len(pixels), [t["image_id"] for t in targets]) for pixels, targets in squares.batches(2, shuffle=False)
    ]
    assert in_order == [(2, [7, 5]), (1, [9])]
    with pytest.raises(ValueError, match="seed"):
        squares.batches(2)
    with pytest.raises(ValueError, match="batch_size"):
        squares.batches(4, seed=0)


def rectangles(count: int, size: int = 128):
    """Bright rectangles on black, and their targets."""
    random = np.random.default_rng(0)
    for _ in range(count):
        pixels = torch.zeros(3, size, size, dtype=torch.uint8)
        (x1, y1), (w, h) = random.integers(0, 60, 2).tolist(), random.integers(45, 65, 2).tolist()
        pixels[:, y1 : y1 + h, x1 : x1 + w] = 255
        box = torch.tensor([[x1, y1, x1 + w, y1 + h]], dtype=torch.float32)
        yield pixels, {"boxes": box, "labels": torch.tensor([1]), "image_id": 4}


@pytest.mark.parametrize("zoom_and_crop", [True, False])
def test_augmentation_keeps_boxes_on_what_they_are_around(zoom_and_crop):
    augment, seen, sides = ssd_augmentation(128, zoom_and_crop), 0, []
    with seeded(torch.device("cpu"), 1):
        for pixels, target in rectangles(60):
            before, kept = pixels.clone(), str(target)
            changed, moved = augmented(pixels, target, augment)
            assert torch.equal(pixels, before) and str(target) == kept  # copies are changed
            assert type(changed) is type(moved["boxes"]) is torch.Tensor
            assert changed.shape == pixels.shape and changed.dtype == torch.uint8 and moved["image_id"] == 4
            assert len(moved["boxes"]) == len(moved["labels"]) <= 1
            seen += not torch.equal(changed, pixels)
            for x1, y1, x2, y2 in moved["boxes"].tolist():
                assert 0 <= x1 < x2 <= 128 and 0 <= y1 < y2 <= 128
                sides.append(x2 - x1)
                inside = changed[:, round(y1) : round(y2), round(x1) : round(x2)].float().mean(0)
                bright = (inside > 0.5 * inside.max()).float().mean()
                assert bright > 0.8
    assert seen > 20 and len(sides) > 40
    assert (min(sides) < 30 and max(sides) > 80) == zoom_and_crop


def test_augmentation_takes_images_without_boxes():
    pixels = torch.full((3, 32, 32), 9, dtype=torch.uint8)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    for _ in range(5):
        changed, moved = augmented(pixels, empty, ssd_augmentation(32))
        assert changed.shape == (3, 32, 32) and moved["boxes"].shape == (0, 4) and moved["labels"].shape == (0,)


@pytest.fixture(scope="module")
def articles():
    """Forty shapes of two kinds, no two alike: blobs of noise within a black frame."""
    random = np.random.default_rng(0)
    pixels = np.zeros((40, 1, 12, 12), np.uint8)
    pixels[:20, :, 2:10, 3:9] = random.integers(120, 256, (20, 1, 8, 6))
    pixels[20:, :, 5:8, 1:11] = random.integers(120, 256, (20, 1, 3, 10))
    labels = torch.arange(2).repeat_interleave(20)
    return Images("shapes", "train", torch.from_numpy(pixels), labels, ("tall", "wide"), (0.2,), (0.3,))


def test_a_split_is_found_by_path_and_by_name(articles, tmp_path, monkeypatch):
    train, test = articles.hold_out(10, seed=0)
    written = write_scenes(train, tmp_path / "scenes", 3), write_scenes(test, tmp_path / "scenes", 2, split="val")
    monkeypatch.delenv("NKD_DATA", raising=False)
    assert coco_root(tmp_path / "scenes") == tmp_path / "scenes" and coco_root("scenes") is None
    assert coco_root(tmp_path) is None
    monkeypatch.setenv("NKD_DATA", str(tmp_path))
    for split, images in zip(("train", "val"), written, strict=True):
        assert CocoImages.load("scenes", split).fingerprint == images.fingerprint
    (tmp_path / "scenes/annotations/instances_train2017.json").touch()
    for split, found in (("test", "found none"), ("train", r"train\.json, instances_train2017")):
        with pytest.raises(DataNotFound, match=found):
            CocoImages.load("scenes", split)
    with pytest.raises(DataNotFound, match="elsewhere"):
        CocoImages.load("elsewhere", "train")


def files_of(root: Path) -> dict[str, bytes]:
    """Contents of the files under a folder."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_scenes_are_a_coco_data_set_and_follow_from_the_seed(articles, tmp_path):
    written = write_scenes(articles, tmp_path / "a", 30, seed=5)
    assert len(written) == 30 and written.classes == ("tall", "wide")
    content = files_of(tmp_path / "a")
    assert len(content) == 31 and content == files_of(write_scenes(articles, tmp_path / "b", 30, seed=5).folder.parent)
    assert content != files_of(write_scenes(articles, tmp_path / "c", 30, seed=6).folder.parent)
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("a/train/*"))]
    again = write_scenes(articles, tmp_path / "a", 30, seed=5)
    assert again.fingerprint == written.fingerprint
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("a/train/*"))]  # not drawn again
    assert content == files_of(tmp_path / "a")
    replaced = write_scenes(articles, tmp_path / "a", 30, seed=6)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "c") and replaced.fingerprint != written.fingerprint
    (tmp_path / "a/annotations/instances_train.json").write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(ValueError, match="holds other annotations"):
        write_scenes(articles, tmp_path / "a", 30, seed=6)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "b/annotations/instances_train.json"))
    assert len(coco.getAnnIds()) == len(written.boxes) and not written.iscrowd.any()
    counts = np.bincount(written.owners, minlength=30)
    assert counts.min() >= 1 and counts.max() <= 6 and counts.mean() > 1.5


def test_boxes_of_scenes_are_tight_and_of_all_sizes(articles, tmp_path):
    written = write_scenes(articles, tmp_path, 40, articles=(1, 1))
    grounds = scenes.backgrounds(40, 128, scenes._seed(0, "train"))
    for (picture, target), ground in zip(written, grounds, strict=True):
        differs = (picture != ground).any(0)
        rows, columns = differs.any(1).nonzero(), differs.any(0).nonzero()
        tight = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
        assert target["boxes"].tolist() == [tight]
        width, height = tight[2] - tight[0], tight[3] - tight[1]
        assert target["area"].tolist() == [width * height]
        assert (target["labels"].item() == 2) == (width > height)
    roots = np.sort(np.sqrt(written.area))
    assert 0.08 * 128 < roots[0] < 20 and 80 < roots[-1] <= 0.91 * 128
    assert (roots < 32).mean() > 0.2 and (roots >= 32).mean() > 0.2


def test_articles_of_a_scene_leave_each_other_room(articles, tmp_path):
    written = write_scenes(articles, tmp_path, 30, articles=(6, 6))
    for place in range(30):
        boxes = written.target(place)["boxes"]
        shared = (
            torch.minimum(boxes[:, None, 2:], boxes[:, 2:]) - torch.maximum(boxes[:, None, :2], boxes[:, :2])
        ).clamp_min(0)
        sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        share = shared.prod(2) / torch.minimum(sizes[:, None], sizes)
        assert share.fill_diagonal_(0).max() <= scenes.CROWDING + 1e-6


def test_colored_articles_of_scenes_are_whole_rectangles(tmp_path):
    color = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1)
    labels, about = torch.zeros(1).long(), ((0.5,) * 3, (0.5,) * 3)
    images = Images("plain", "train", color.expand(1, 3, 8, 8).contiguous(), labels, ("plain",), *about)
    for picture, target in write_scenes(images, tmp_path, 5, size=64, sides=(0.5, 0.5), articles=(1, 1)):
        x1, y1, x2, y2 = target["boxes"][0].int().tolist()
        assert (x2 - x1, y2 - y1) == (32, 32) and (picture[:, y1:y2, x1:x2] == color).all()


def test_scenes_of_other_articles_replace_those_of_the_same_boxes(tmp_path):
    for level in (50, 250):
        pixels = torch.full((1, 3, 8, 8), level, dtype=torch.uint8)
        images = Images("plain", "train", pixels, torch.zeros(1).long(), ("plain",), (0.5,) * 3, (0.5,) * 3)
        picture, target = write_scenes(images, tmp_path, 1, size=64)[0]
        x1, y1, x2, y2 = target["boxes"][0].int().tolist()
        assert (picture[:, y1:y2, x1:x2] == level).any()


def test_splits_of_scenes_differ(articles):
    ground = [next(scenes.backgrounds(1, 32, scenes._seed(0, split))) for split in ("train", "test")]
    assert not torch.equal(*ground)


def test_scenes_refuse_what_cannot_be_drawn(articles, tmp_path):
    for wrong in ({"count": 0}, {"size": 8}, {"articles": (2, 1)}, {"sides": (0.5, 1.5)}, {"split": "../x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            write_scenes(articles, tmp_path, **{"count": 2} | wrong)
    black = Images(
        "black", "train", torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1).long(), ("a",), (0,), (1,)
    )
    with pytest.raises(ValueError, match="black all over"):
        write_scenes(black, tmp_path / "black", 1)


@pytest.mark.parametrize(
    ("name", "count", "boxes", "crowds", "empty", "classes"),
    [("coco-tiny", 50, 470, 5, 1, 80), ("bccd-coco", 292, 3941, 0, 0, 3), ("coco2017_mini", 293, 2504, 24, 2, 80)],
)
def test_real_data(name, count, boxes, crowds, empty, classes):
    if coco_root(name) is None:
        pytest.skip(f"NKD_DATA has no folder {name} in COCO's layout")
    images = CocoImages.load(name, "train")
    without = count - len(np.unique(images.owners))
    assert (len(images), len(images.boxes), images.iscrowd.sum(), without) == (count, boxes, crowds, empty)
    assert len(images.classes) == classes and len(in_pycocotools(images.to_coco()).getAnnIds()) == boxes
    squares = SquareImages(images.subset(20, seed=0), 64)
    for pixels, targets in squares.batches(10, steps=4, seed=0, augment=ssd_augmentation(64)):
        assert pixels.shape == (10, 3, 64, 64) and pixels.float().std() > 20
        for target in targets:
            assert (target["boxes"] >= 0).all() and (target["boxes"] <= 64).all()
            assert ((target["labels"] >= 1) & (target["labels"] <= classes)).all()
