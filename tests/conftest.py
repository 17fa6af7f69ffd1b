"""What every test file shares: no deadlines on a shared machine, and one thread a network."""

from collections.abc import Iterator

import cv2
import pytest
import torch
from hypothesis import settings

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
torch.set_num_threads(2)
cv2.setNumThreads(1)


@pytest.fixture(scope="session", autouse=True)
def same_arithmetic_on_every_processor() -> Iterator[None]:
    """`auto` is fp32, so that what is compared with float32 is float32, and Winograd's algorithm is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sartorius_infer.ensemble.device.cpu_multiplies", lambda name: False)
        patch.setattr("sartorius_infer.networks.cpu.winograd.pays", lambda: True)
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks are done before a second thread wakes up, and a busy machine may not wake it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
