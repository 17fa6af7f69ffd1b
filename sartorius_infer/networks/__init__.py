"""Networks: what the ensemble asks of one, and the families that come with the package."""

from sartorius_infer.networks import light_import as _first  # noqa: F401
from sartorius_infer.networks.base import Detections, Features, Network
from sartorius_infer.networks.cellpose.family import CellposeFamily
from sartorius_infer.networks.detectron2.family import Detectron2Family
from sartorius_infer.networks.mmdet.family import MmdetFamily
from sartorius_infer.networks.registry import Family, family_of, register, register_network
from sartorius_infer.networks.torchvision.family import TorchvisionFamily

__all__ = ["Detections", "Family", "Features", "Network", "family_of", "register_network"]

register(TorchvisionFamily())
register(Detectron2Family())
register(MmdetFamily())
register(CellposeFamily())
