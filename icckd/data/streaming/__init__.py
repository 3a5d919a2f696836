"""Image files that are decoded as they are needed, for data that are larger than memory.

`ImageFiles` stands where a tensor of images would, `Decoders` are the processes that decode for it; what they do with a
file is in `pictures`.
"""

from icckd.data.streaming.decoders import Decoders
from icckd.data.streaming.image_files import ImageFiles

__all__ = ["Decoders", "ImageFiles"]
