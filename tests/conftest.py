"""Settings of all tests."""

import torch

# The models are so small that threads would only wait for one another.
torch.set_num_threads(1)
