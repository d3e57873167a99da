"""Caption and image processors under LAVIS's names."""

from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageEvalProcessor

__all__ = ["BlipCaptionProcessor", "BlipImageEvalProcessor"]
