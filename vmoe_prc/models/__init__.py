"""Vision transformers with sparse mixtures of experts."""

from vmoe_prc.models.routing import Routing
from vmoe_prc.models.vit import VisionTransformerMoe

__all__ = ["Routing", "VisionTransformerMoe"]
