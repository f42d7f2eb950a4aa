"""Object detection: images with boxes, batches of them, and generated scenes."""

from nkdlib.detection.batches import DetectionBatches, SquareImages, SSDAugmentation
from nkdlib.detection.coco import CocoImages, Problem
from nkdlib.detection.scenes import write_scenes

__all__ = ["CocoImages", "DetectionBatches", "Problem", "SSDAugmentation", "SquareImages", "write_scenes"]
