"""What happens to a caption before the tokenizer, and LAVIS's own image transform."""

import re

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from lavis.processors.rgb import as_rgb
from sprc.core.errors import InputError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


class BlipCaptionProcessor:
    """Lower case, `.!"()*#:;~` to spaces, runs of spaces to one, at most `max_words` words."""

    def __init__(self, prompt: str = "", max_words: int = 50):
        self.prompt = prompt
        self.max_words = max_words

    def __call__(self, caption: str) -> str:
        """One caption -> the text for the tokenizer. Raises InputError if it is no string."""
        if not isinstance(caption, str):
            raise InputError(f"a caption should be text, not {caption!r}: check the captions file")
        text = _SPACES.sub(" ", _PUNCTUATION.sub(" ", caption.lower())).rstrip("\n").strip(" ")
        words = text.split(" ")
        return self.prompt + (" ".join(words[: self.max_words]) if len(words) > self.max_words else text)


class BlipImageEvalProcessor:
    """LAVIS's transform: a PIL image squashed to (3, size, size), CLIP mean and std. `data_utils` has SPRC's own."""

    def __init__(self, image_size: int = 224):
        self._transform = v2.Compose(
            [
                v2.Resize((image_size, image_size), interpolation=v2.InterpolationMode.BICUBIC),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(CLIP_MEAN, CLIP_STD),
            ]
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """A PIL image of any mode -> (3, size, size) float32. Raises ImageError as `as_rgb`."""
        return self._transform(as_rgb(image)).as_subclass(Tensor)
