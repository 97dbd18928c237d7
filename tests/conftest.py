"""What all tests share: one thread, so that two cores and any machine give the same figures."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
