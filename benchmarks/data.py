"""One augmented batch of pictures of 32x32 against transforms of single pictures.

python benchmarks/data.py [--short] [--json]
"""

import numpy as np
import torch
from compare import arguments, in_turns, show
from PIL import Image
from torchvision import transforms

from dartslight.data.augmentation import augment, normalise

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)

if __name__ == "__main__":
    given = arguments(__doc__)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator)
    stored = images.to(memory_format=torch.channels_last)
    files = [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in images]
    one = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    book = in_turns(
        "augmented batch of 64 pictures: pad and crop, flip, normalise",
        lambda: torch.stack([one(file) for file in files]),
        lambda: normalise(augment(stored, 0, 4, True), MEAN, STD),
        given.repeats or 50,
    )
    show([book], given)
