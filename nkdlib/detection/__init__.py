"""Object detection: images with boxes, SSDLite on any classification network, and average precision as COCO has it."""

from nkdlib.detection.batches import SquareImages, augmented, ssd_augmentation
from nkdlib.detection.coco import CocoImages, coco_root
from nkdlib.detection.precision import AveragePrecision, evaluate
from nkdlib.detection.ssdlite import Detector, feature_maps, ssdlite
from nkdlib.detection.train import detect, train_detector

__all__ = [
    "AveragePrecision",
    "CocoImages",
    "Detector",
    "SquareImages",
    "augmented",
    "coco_root",
    "detect",
    "evaluate",
    "feature_maps",
    "ssd_augmentation",
    "ssdlite",
    "train_detector",
]
