"""What tests/test_functional.py and tests/test_module.py ask of the function and the module, on the device."""

import pytest
import torch

from tests import test_functional, test_module

# They name the CPU's kernels, take tensors that were made on the CPU, or ask what only the CPU answers.
OF_THE_CPU = {
    "test_autocast",  # test_derivatives.py has it for the device
    "test_a_cuda_tensor_is_told_what_a_cpu_build_lacks",
    "test_device_without_kernels_gets_one_sentence",
    "test_errors_are_conv2ds",
    "test_explain_names_the_kernel_that_runs",
    "test_fake_kernels_raise_what_the_kernels_raise",
    "test_meta_device_and_skip_init",
    "test_named_kernel_that_cannot_run_says_why",
    "test_odd_same_padding_extends_bottom_and_right",
    "test_results_do_not_depend_on_the_thread_count",
    "test_unknown_kernel_lists_the_known_ones",
}
TESTS = {
    name: test
    for module in (test_functional, test_module)
    for name, test in vars(module).items()
    if name.startswith("test_")
}
assert TESTS.keys() >= OF_THE_CPU
globals().update({name: test for name, test in TESTS.items() if name not in OF_THE_CPU})


@pytest.fixture(autouse=True)
def _on_the_device(device, own_kernels):
    with torch.device(device):  # where tensors are made
        yield
