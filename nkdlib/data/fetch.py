"""`python -m nkdlib.data.fetch NAME...`: bring data sets here and decode them ahead of time."""

import argparse

from nkdlib.data.load import NAMES, load


def main(arguments: list[str] | None = None) -> None:
    """Load each data set once, and print its sizes and its digest."""
    parser = argparse.ArgumentParser(prog="python -m nkdlib.data.fetch", description=main.__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"{', '.join(NAMES)}, or a folder of images")
    options = parser.parse_args(arguments)
    for name in options.names:
        for split in ("train", "test"):
            images = load(name, split)
            size = "x".join(map(str, images.shape))
            print(f"{images.name} {split}: {len(images):,} images of {size}, {images.num_classes} classes")
            print(f"  SHA-256 {images.fingerprint}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
