"""Pictures for search, selection and retraining: data sets behind one DataModule, sampling that can go on anywhere.

Loaders hand out bytes, gathered from one array in memory or in a memory-mapped file; augmentation and normalisation
happen on the device, for a whole batch at once, with a draw of its own for every picture. There are no worker processes
and no pinned memory: gathering, cropping, flipping and normalising 64 pictures of 32x32 takes 0.3 ms on one core.
"""

from dartslight.data.datasets import CIFAR10, CIFAR100, SVHN, Digits
from dartslight.data.folder import ImageFolder
from dartslight.data.module import ImageData
from dartslight.data.nothing import NoPictures
from dartslight.data.pictures import Pictures
from dartslight.data.sampling import Batch, EvaluationBatches
from dartslight.data.signature import Signature

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "SVHN",
    "Batch",
    "Digits",
    "EvaluationBatches",
    "ImageData",
    "ImageFolder",
    "NoPictures",
    "Pictures",
    "Signature",
]
