"""What every test file shares: no deadlines on a shared machine, and one thread a network."""

import cv2
import torch
from hypothesis import settings

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
torch.set_num_threads(2)
cv2.setNumThreads(1)
