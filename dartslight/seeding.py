"""Every random draw is a pure function of the run's seed and of its place, so a run can stop and go on anywhere."""

import os

import numpy as np


def run_seed() -> int:
    """Returns the seed that was given to ``seed_everything``, 0 if there was none."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def derived_seed(*path: int) -> int:
    """Returns a seed of 63 bits for one place.

    Args:
        path: The run's seed and the numbers that name the place, for example epoch, batch and rank.
    """
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0] >> 1)
