"""Images with labels, to train and to evaluate with: folders, data sets of the library `datasets`, and digits.

`read_images` finds them and checks that each can be read, `splits` returns training and validation images.
"""

from bit.image_folder.labelled import LabelledImages
from bit.image_folder.reading import read_images, split_by_class, splits

__all__ = ["LabelledImages", "read_images", "split_by_class", "splits"]
