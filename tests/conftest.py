"""What all tests share."""

import torch

# The networks of the tests are so small that a second thread costs more than it brings.
torch.set_num_threads(1)
