import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Of layers as small as these tests', two threads mostly wait for each other where a machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
