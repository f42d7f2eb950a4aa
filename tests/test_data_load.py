"""Finding, fetching, checking, decoding and keeping data sets; everything tiny and made on the spot."""

import gzip
import hashlib
import os
import pickle
import shutil
import subprocess
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, FashionMNIST

from nkdlib.data import DataDamaged, DataNotFound, decode, download, load
from nkdlib.data import fetch as fetch_command
from nkdlib.data.load import FINDERS

REAL_DATA = Path(os.environ["NKD_DATA"]) if os.environ.get("NKD_DATA") else None


@pytest.fixture(autouse=True)
def fetched(tmp_path, monkeypatch):
    """Nothing fetched, no data, and no way to the net."""
    monkeypatch.setenv("NKD_CACHE", str(tmp_path / "fetched"))
    monkeypatch.delenv("NKD_DATA", raising=False)
    monkeypatch.setattr(download, "FETCHERS", {"fashion-mnist": {}, "cifar10": {}})
    return tmp_path / "fetched"


@pytest.fixture
def fashion(tmp_path, monkeypatch) -> Path:
    """Four idx files like Fashion-MNIST's, of 12 + 4 images of 3x2, with their checksums as the published."""
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    random, md5 = np.random.default_rng(0), {}
    for prefix, count in (("train", 12), ("t10k", 4)):
        for kind, shape in (("images-idx3", (count, 3, 2)), ("labels-idx1", (count,))):
            values = random.integers(0, 256 if kind == "images-idx3" else 10, shape, dtype=np.uint8)
            content = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + values.tobytes()
            md5[f"{prefix}-{kind}-ubyte"] = hashlib.md5(content).hexdigest()
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(decode, "FASHION_MD5", md5)
    return folder


def draw_tree(root: Path, splits=("train", "test"), kinds=("cat", "dog")) -> Path:
    """Two images of each of two classes in each split, in colors that tell them apart."""
    for split_place, split in enumerate(splits):
        for kind_place, kind in enumerate(kinds):
            for number in range(2):
                folder = root / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                color = (100 * split_place, 100 * kind_place, 100 * number)
                Image.new("RGB", (4, 3), color).save(folder / f"{number}.png")
    return root


def test_fashion_mnist_from_nkd_data(fashion, monkeypatch):
    monkeypatch.setenv("NKD_DATA", str(fashion.parent))
    train, test = load("fashion-mnist"), load("fashion-mnist", "test")
    assert (len(train), len(test), train.shape) == (12, 4, (1, 3, 2))
    content = gzip.decompress((fashion / "train-images-idx3-ubyte.gz").read_bytes())
    assert train.pixels.flatten().tolist() == list(content[16:])
    values = train.pixels.double() / 255
    assert train.mean[0] == pytest.approx(values.mean().item())
    assert train.std[0] == pytest.approx(values.std(unbiased=False).item())
    assert test.mean == train.mean
    for file in fashion.iterdir():  # unpacked files are the same data set
        (fashion / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert load("fashion-mnist").fingerprint == train.fingerprint


def test_it_is_decoded_once_and_reopened_when_pickled(fashion, capsys):
    images = load("fashion-mnist", root=fashion)
    assert "decoding fashion-mnist" in capsys.readouterr().out
    assert load("fashion-mnist", root=fashion).fingerprint == images.fingerprint and not capsys.readouterr().out
    part = images.subset([5, 2])
    sent = pickle.dumps(part)
    again = pickle.loads(sent)
    assert torch.equal(again.pixels, images.pixels[[5, 2]]) and again.fingerprint == part.fingerprint
    assert images.pixels.numpy().tobytes() not in sent
    os.utime(fashion / "t10k-labels-idx1-ubyte.gz", (0, 0))  # other files, perhaps
    load("fashion-mnist", root=fashion)
    assert "decoding fashion-mnist" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncated", "another file", "no gzip"])
def test_a_damaged_source_is_an_error(fashion, damage):
    file = fashion / "train-labels-idx1-ubyte.gz"
    content = {"truncated": file.read_bytes()[:-9], "another file": gzip.compress(bytes(20)), "no gzip": b"x"}
    file.write_bytes(content[damage])
    with pytest.raises(DataDamaged, match=r"train-labels-idx1-ubyte.gz is damaged or another file.*remove it"):
        load("fashion-mnist", root=fashion)


def test_places_are_tried_in_order(fashion, fetched, monkeypatch):
    calls = []

    def fails(scratch):
        calls.append("first")
        (scratch / "half").write_text("of a file")
        raise subprocess.CalledProcessError(100, "apt-get", stderr="W: a warning\nE: no such package\n")

    def works(scratch):
        calls.append("second")
        assert not list(scratch.iterdir())
        return Path(shutil.copytree(fashion, scratch / "fashion-mnist"))

    monkeypatch.setitem(download.FETCHERS, "fashion-mnist", {"mirror": fails, "Debian": works, "never": None})
    (fetched / "fashion-mnist" / "fashion-mnist").mkdir(parents=True)  # a file was damaged and removed
    shutil.copy(fashion / "t10k-labels-idx1-ubyte.gz", fetched / "fashion-mnist" / "fashion-mnist")
    assert len(load("fashion-mnist")) == 12
    assert calls == ["first", "second"] and not (fetched / "fashion-mnist" / ".part").exists()
    assert len(load("fashion-mnist", "test")) == 4
    assert calls == ["first", "second"]  # found there now


def test_when_all_fails_the_error_says_what_was_tried(tmp_path, monkeypatch):
    def fails(scratch):
        raise TimeoutError("timed out")

    monkeypatch.setitem(download.FETCHERS, "cifar10", {"https://mirror": fails})
    monkeypatch.setenv("NKD_DATA", str(tmp_path))
    with pytest.raises(DataNotFound) as caught:
        load("cifar10")
    for said in (f"{tmp_path}: not there", "https://mirror: timed out", "cifar-10-python.tar.gz", "NKD_DATA"):
        assert said in str(caught.value)


def test_the_file_that_is_missing_is_named(fashion):
    (fashion / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataNotFound, match="fashion-mnist has no t10k-labels-idx1-ubyte\n"):
        load("fashion-mnist", root=fashion.parent)


def test_a_download_is_checked_and_moved_whole(fashion, fetched, monkeypatch):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *said):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=fashion))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    sums = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in sorted(fashion.iterdir())]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    monkeypatch.setitem(download.FETCHERS, "fashion-mnist", {"mirror": download.fashion_mnist_from_mirror})
    last = fashion / sums[-1][0]
    good = last.read_bytes()
    last.write_bytes(good[:-9])
    with pytest.raises(DataNotFound, match=r"mirror: .*corrupted"):
        load("fashion-mnist")
    last.write_bytes(good)
    assert len(load("fashion-mnist")) == 12
    assert [path.name for path in (fetched / "fashion-mnist").iterdir() if path.is_dir()] == ["FashionMNIST"]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
def test_a_folder_and_its_archive_are_the_same(tmp_path, packing):
    tree = draw_tree(tmp_path / "pets", ("train", "val"))
    folder = load(tree)
    assert folder.classes == ("cat", "dog") and folder.labels.tolist() == [0, 0, 1, 1]
    assert folder.shape == (3, 3, 4)
    assert folder.pixels[:, :, 0, 0].tolist() == [[0, 0, 0], [0, 0, 100], [0, 100, 0], [0, 100, 100]]
    assert load(tree, "test").pixels[0, :, 0, 0].tolist() == [100, 0, 0]
    archive = tmp_path / f"pets.tar{packing}"
    with tarfile.open(archive, f"w:{packing.removeprefix('.')}") as packed:
        for file in sorted(tree.rglob("*.png"), reverse=True):
            packed.add(file, f"./top/{file.relative_to(tree)}")
    assert load(archive).fingerprint == folder.fingerprint
    assert load("pets", root=tmp_path).fingerprint == folder.fingerprint
    content = archive.read_bytes()
    for kept in (len(content.rstrip(b"\0")) // 2, len(content.rstrip(b"\0")) - 4):
        archive.write_bytes(content[:kept])
        with pytest.raises(DataDamaged, match="not a whole tar archive"):
            load(archive)


def test_images_that_differ_in_size(tmp_path):
    tree = draw_tree(tmp_path / "pets")
    Image.new("L", (8, 20), 50).save(tree / "train" / "cat" / "0.png")
    with pytest.raises(ValueError, match=r"train/cat/0.png \(20x8\) and train/cat/1.png \(3x4\).*image_size"):
        load(tree)
    images = load(tree, image_size=6)
    assert images.shape == (3, 6, 6) and images.pixels[0].unique().tolist() == [50]
    half = Image.new("RGB", (9, 3))
    half.paste((255, 255, 255), (3, 0, 6, 3))  # the center third is white
    half.save(tree / "train" / "cat" / "0.png")
    assert load(tree, image_size=3).pixels[0].unique().tolist() == [255]


def test_trees_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"test or val/<class>/, found none"):
        load(draw_tree(tmp_path / "a", ["train"]))
    with pytest.raises(ValueError, match="found test, val"):
        load(draw_tree(tmp_path / "b", ["train", "test", "val"]))
    tree = draw_tree(tmp_path / "c")
    (tree / "train" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataDamaged, match=r"train/dog/1.png is damaged"):
        load(tree)


def test_names_that_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataNotFound, match="'cifar' is neither one of digits, fashion-mnist, cifar10 nor"):
        load("cifar")
    with pytest.raises(ValueError, match="split"):
        load("digits", "val")
    with pytest.raises(ValueError, match="image_size"):
        load("digits", image_size=8)
    monkeypatch.setenv("NKD_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"NKD_DATA .*nowhere"):
        load("fashion-mnist")


def test_cifar10_as_published(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random, names = np.random.default_rng(0), [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    batches = {name: {"data": random.integers(0, 256, (2, 3072), np.uint8), "labels": [3, 9]} for name in names}
    for name, content in (batches | {"batches.meta": {"label_names": ["plane", "car", "bird", "cat"]}}).items():
        (folder / name).write_bytes(pickle.dumps(content))
    md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    train, test = load("cifar10", root=tmp_path), load("cifar10", "test", root=tmp_path)
    assert (len(train), len(test), train.shape) == (10, 2, (3, 32, 32))
    assert test.pixels.flatten().tolist() == batches["test_batch"]["data"].flatten().tolist()
    assert train.labels.tolist() == [3, 9] * 5 and train.classes[3] == "cat"
    (folder / "test_batch").write_bytes((folder / "test_batch").read_bytes()[:-20])
    with pytest.raises(DataDamaged, match="cifar-10-batches-py is damaged"):
        load("cifar10", root=tmp_path)


def test_cifar10_as_images_must_be_whole(tmp_path):
    draw_tree(tmp_path / "cifar10", kinds=("airplane", "dog"))
    with pytest.raises(DataDamaged, match=r"50,000 \+ 10,000 images of 10 classes, this has 4 \+ 4 of 2 classes"):
        load("cifar10", root=tmp_path)


def test_fetch_command(tmp_path, capsys):
    tree = draw_tree(tmp_path / "pets")
    fetch_command.main([str(tree), "digits"])
    said = capsys.readouterr().out
    assert "pets train: 4 images of 3x3x4, 2 classes" in said and load(tree).fingerprint in said
    assert "digits test: 360 images" in said


@pytest.mark.skipif(not (REAL_DATA and FINDERS["cifar10"](REAL_DATA)), reason="NKD_DATA has no CIFAR-10")
def test_real_cifar10():
    train, test = load("cifar10", root=REAL_DATA), load("cifar10", "test", root=REAL_DATA)
    assert (len(train), len(test), train.shape) == (50_000, 10_000, (3, 32, 32))
    assert train.labels.bincount().tolist() == [5_000] * 10
    assert train.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)  # as published many times over
    assert train.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=3e-3)  # JPEG smooths a little


def test_images_without_splits_are_divided_by_the_caller(tmp_path):
    tree = draw_tree(tmp_path, ["animals"])
    (tree / "animals" / "list.txt").write_text("not an image")
    with tarfile.open(tmp_path / "packed.tar", "w") as packed:
        packed.add(tree / "animals", ".")
    for name in ("animals", "packed.tar"):
        images = load(name, "all", root=tmp_path)
        assert images.classes == ("cat", "dog") and images.labels.tolist() == [0, 0, 1, 1]
        rest, held_out = images.hold_out(1, seed=0)
        assert (len(rest), len(held_out)) == (3, 1)
    assert images.mean == pytest.approx((0, 50 / 255, 50 / 255))  # of all images
    with pytest.raises(ValueError, match=r"split \(='train'\) is not in .*, which has all; load split='all'"):
        load("animals", "train", root=tmp_path)
    with pytest.raises(ValueError, match=r"split \(='all'\) is not in .*, which has train, test; load one"):
        load(draw_tree(tmp_path / "pets"), "all")
    with pytest.raises(ValueError, match="digits has 'train' and 'test'"):
        load("digits", "all")


def test_the_shorter_side_and_the_center_have_sizes_of_their_own(tmp_path):
    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (6, 2, 10, 6))  # a white square in the center
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    image.save(tmp_path / "pets" / "cat" / "0.png")
    assert load(tmp_path / "pets", "all", image_size=4, resize=8).pixels.unique().tolist() == [255]
    wider = load(tmp_path / "pets", "all", image_size=6, resize=8).pixels[0, 0] == 255
    assert wider.sum() == 16 and wider[1:5, 1:5].all()
    larger = load(tmp_path / "pets", "all", image_size=12, resize=16).pixels
    assert larger.shape == (1, 3, 12, 12) and larger[0, :, 3:9, 3:9].min() == 255 and larger[0, :, 0].max() == 0
    for sizes in ({"resize": 8}, {"resize": 8, "image_size": 9}):
        with pytest.raises(ValueError, match="resize"):
            load(tmp_path / "pets", "all", **sizes)


def test_normalization_can_be_anothers(tmp_path):
    images = load(draw_tree(tmp_path / "pets"))
    other = images.renormalized((0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    assert other.fingerprint != images.fingerprint and images.mean != other.mean
    half = pickle.loads(pickle.dumps(other.subset([3])))
    (x, _), *_ = half.batches(1, shuffle=False)
    assert x[0, :, 0, 0].tolist() == pytest.approx([-1, 100 / 255 - 0.25, 50 / 255])
    with pytest.raises(ValueError, match="must have 3 values"):
        images.renormalized((0.5,), (0.5,))
