"""Object detection: images with boxes, SSDLite on any classification network, and average precision as COCO has it."""

from nkdlib.detection.batches import SquareImages, ssd_augmentation
from nkdlib.detection.coco import CocoImages, coco_root
from nkdlib.detection.precision import evaluate
from nkdlib.detection.ssdlite import ssdlite
from nkdlib.detection.train import detect, train_detector

__all__ = [
    "CocoImages",
    "SquareImages",
    "coco_root",
    "detect",
    "evaluate",
    "ssd_augmentation",
    "ssdlite",
    "train_detector",
]
