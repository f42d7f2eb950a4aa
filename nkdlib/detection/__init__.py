"""Object detection: an SSDLite head on any classification network, its training, and COCO's average precision."""

from nkdlib.detection.precision import AveragePrecision, evaluate
from nkdlib.detection.ssdlite import Detector, feature_maps, ssdlite
from nkdlib.detection.train import detect, train_detector

__all__ = ["AveragePrecision", "Detector", "detect", "evaluate", "feature_maps", "ssdlite", "train_detector"]
