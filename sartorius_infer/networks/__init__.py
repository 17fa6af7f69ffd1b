"""Networks: what the ensemble asks of one, and the families that come with the package."""

from sartorius_infer.manifest.torchvision import PRESETS
from sartorius_infer.networks import light_import as _first  # noqa: F401
from sartorius_infer.networks.base import (
    Architecture,
    Detections,
    Features,
    Network,
    architecture_of,
    register_network,
)
from sartorius_infer.networks.detectron2.rcnn import ARCHITECTURE, build_detectron2, is_detectron2
from sartorius_infer.networks.torchvision.keys import is_mask_rcnn
from sartorius_infer.networks.torchvision.rcnn import build_network

__all__ = ["Architecture", "Detections", "Features", "Network", "architecture_of", "register_network"]

for _name in PRESETS:
    register_network(_name, build_network, is_mask_rcnn)

register_network(ARCHITECTURE, build_detectron2, is_detectron2)
