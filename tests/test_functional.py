"""grouped_conv2d against torch.nn.functional.conv2d: values, formats, errors, and which tensors are touched."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from resnext_kernels import GroupedConv2dFunction, _ops, explain, grouped_conv2d

from .cases import CASES, OperatorLog, tensors

pytestmark = pytest.mark.usefixtures("own_kernels")

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def test_signature_is_conv2ds():
    names = list(inspect.signature(grouped_conv2d).parameters)
    assert names == ["input", "weight", "bias", "stride", "padding", "dilation", "groups", "kernel"]


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients_equal_conv2d(case, memory_format):
    *args, kwargs = tensors(case, memory_format=memory_format)
    output, expected = grouped_conv2d(*args, **kwargs), F.conv2d(*args, **kwargs)
    assert output.stride() == expected.stride()
    torch.testing.assert_close(output, expected, rtol=1e-13, atol=1e-13)
    grad = torch.randn_like(output)
    ours, theirs = (torch.autograd.grad(y, args, grad) for y in (output, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_small_integers_are_exact(dtype):
    """Every partial sum is representable, so any misplaced tap changes the result."""
    input = torch.randint(-3, 4, (2, 8, 9, 7)).to(dtype).requires_grad_()
    weight = torch.randint(-1, 2, (8, 2, 3, 3)).to(dtype).requires_grad_()
    bias = torch.randint(-3, 4, (8,)).to(dtype).requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (input, weight, bias)]
    output = grouped_conv2d(input, weight, bias, 1, 1, 1, 4)
    expected = F.conv2d(*wide, 1, 1, 1, 4)
    assert torch.equal(output.double(), expected)
    grad = torch.randint(-1, 2, output.shape).to(dtype)
    ours = torch.autograd.grad(output, (input, weight, bias), grad)
    theirs = torch.autograd.grad(expected, wide, grad.double())
    assert all(torch.equal(a.double(), b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_by_name(padding, dilation):
    input, weight = torch.randn(2, 4, 8, 7).double(), torch.randn(4, 2, 3, 3).double()
    args = input, weight, None, 1, padding, dilation, 2
    torch.testing.assert_close(grouped_conv2d(*args), F.conv2d(*args), rtol=1e-13, atol=1e-13)


def test_odd_same_padding_extends_bottom_and_right():
    input, weight = torch.randn(1, 4, 8, 7).double(), torch.randn(4, 2, 2, 4).double()
    ours = grouped_conv2d(input, weight, None, 1, "same", 1, 2, kernel="fprop_reference")
    torch.testing.assert_close(ours, F.conv2d(input, weight, None, 1, "same", 1, 2), rtol=1e-13, atol=1e-13)


def test_unbatched_input():
    input, weight = torch.randn(4, 6, 6).double(), torch.randn(4, 2, 3, 3).double()
    args = input, weight, None, 1, 1, 1, 2
    assert grouped_conv2d(*args).shape == (4, 6, 6)
    torch.testing.assert_close(grouped_conv2d(*args), F.conv2d(*args), rtol=1e-13, atol=1e-13)


def test_zero_batch_has_zero_gradients():
    input = torch.randn(0, 8, 6, 6, requires_grad=True)
    weight, bias = torch.randn(8, 2, 3, 3, requires_grad=True), torch.randn(8, requires_grad=True)
    output = grouped_conv2d(input, weight, bias, 1, 1, 1, 4)
    assert output.shape == (0, 8, 6, 6)
    output.sum().backward()
    assert input.grad.shape == input.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert torch.equal(bias.grad, torch.zeros_like(bias))


VIEWS = {
    "sliced": lambda: torch.randn(2, 8, 9, 9)[:, :, 1:8, 1:8],
    "every second column": lambda: torch.randn(2, 8, 7, 14)[..., ::2],
    "expanded batch": lambda: torch.randn(1, 8, 7, 7).expand(3, 8, 7, 7),
    "expanded pixel": lambda: torch.randn(2, 8, 1, 1).expand(2, 8, 7, 7),
    "height and width transposed": lambda: torch.randn(2, 8, 7, 7).transpose(2, 3),
    "sliced channels_last": lambda: torch.randn(2, 16, 7, 7).to(memory_format=torch.channels_last)[:, 4:12],
    "channels_last": lambda: torch.randn(2, 8, 7, 7).to(memory_format=torch.channels_last),
    "one row": lambda: torch.randn(2, 8, 1, 7).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("weight_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides_give_conv2ds_values_and_strides(view, weight_format):
    input = VIEWS[view]()
    weight = torch.randn(8, 2, 3, 3).contiguous(memory_format=weight_format)
    before = input.clone(), input.stride()
    args = [t.requires_grad_() for t in (input.detach(), weight)]
    output, expected = (conv(*args, padding=1, groups=4) for conv in (grouped_conv2d, F.conv2d))
    assert output.stride() == expected.stride()
    torch.testing.assert_close(output, expected)
    assert torch.equal(input, before[0])
    assert input.stride() == before[1]
    grad = torch.randn_like(output)
    for a, b in zip(torch.autograd.grad(output, args, grad), torch.autograd.grad(expected, args, grad), strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b)


AMBIGUOUS = {  # sizes of 1 make strides fit both formats; c10 decides for contiguous
    "N111": lambda: torch.randn(3, 1, 1, 1),
    "N11W, sliced": lambda: torch.randn(3, 1, 1, 4)[..., :1],
    "N1HW": lambda: torch.randn(3, 1, 4, 5),
    "N1HW, channels_last": lambda: torch.randn(3, 1, 4, 5).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("view", AMBIGUOUS)
def test_ambiguous_strides_in_kernel_and_fake_kernel(view):
    input, weight = AMBIGUOUS[view](), torch.randn(2, 1, 3, 3)
    op = lambda i, w: torch.ops.resnext_kernels.grouped_conv2d(i, w, None, 1, 1, 1, 1)  # noqa: E731
    with FakeTensorMode() as mode:
        fake = op(mode.from_tensor(input), mode.from_tensor(weight))
    assert op(input, weight).stride() == fake.stride() == F.conv2d(input, weight, padding=1).stride()


def test_strided_bias_and_expanded_weight():
    input, weight = torch.randn(2, 8, 5, 5), torch.randn(1, 2, 3, 3).expand(8, 2, 3, 3)
    bias = torch.randn(16)[::2]
    torch.testing.assert_close(
        grouped_conv2d(input, weight, bias, 1, 1, 1, 4), F.conv2d(input, weight, bias, 1, 1, 1, 4)
    )


# --- errors: what conv2d raises, in its words


def _conv_args(**changes):
    args = {"input": torch.randn(1, 8, 5, 5), "weight": torch.randn(8, 2, 3, 3), "bias": None, "groups": 4}
    return {**args, **changes}


BAD = {
    "rank": {"input": torch.randn(5, 5)},
    "rank of weight": {"weight": torch.randn(8, 2, 3)},
    "channels": {"input": torch.randn(1, 6, 5, 5)},
    "groups do not divide": {"weight": torch.randn(9, 2, 3, 3)},
    "fewer outputs than groups": {"weight": torch.randn(3, 2, 3, 3)},
    "zero groups": {"groups": 0},
    "negative groups": {"groups": -4},
    "zero stride": {"stride": 0},
    "negative stride": {"stride": (1, -1)},
    "zero dilation": {"dilation": 0},
    "negative padding": {"padding": -1},
    "three strides": {"stride": (1, 1, 1)},
    "three paddings": {"padding": (1, 1, 1)},
    "kernel larger than input": {"input": torch.randn(1, 8, 2, 2)},
    "bias too short": {"bias": torch.randn(7)},
    "bias of rank 2": {"bias": torch.randn(8, 1)},
    "dtypes": {"input": torch.randn(1, 8, 5, 5).double()},
    "bias dtype": {"bias": torch.randn(8).double()},
    "padding name": {"padding": "full"},
    "same with stride": {"padding": "same", "stride": 2},
    "integer": {"input": torch.ones(1, 8, 5, 5, dtype=torch.bool), "weight": torch.ones(8, 2, 3, 3, dtype=torch.bool)},
    "sparse": {"input": torch.randn(1, 8, 5, 5).to_sparse()},
    "quantised": {"input": torch.quantize_per_tensor(torch.randn(1, 8, 5, 5), 0.1, 0, torch.quint8)},
    "None": {"input": None},
    "meta and cpu": {"input": torch.randn(1, 8, 5, 5, device="meta"), "weight": torch.randn(8, 6, 3, 3)},
}


@pytest.mark.parametrize("bad", BAD)
def test_errors_are_conv2ds(bad):
    args = _conv_args(**BAD[bad])
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - which one is what the test is about
        F.conv2d(**args)
    with pytest.raises(type(theirs.value)) as ours:
        grouped_conv2d(**args)
    assert str(theirs.value).split("\n")[0].split("invalid combination")[0] in str(ours.value)


@pytest.mark.parametrize(
    "bad",
    ["channels", "zero stride", "negative stride", "zero dilation", "negative padding", "three strides"]
    + ["three paddings", "kernel larger than input", "bias too short", "bias of rank 2"],
)
def test_fake_kernels_raise_what_the_kernels_raise(bad):
    args = _conv_args(**BAD[bad])
    meta = {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in args.items()}
    with pytest.raises(Exception) as real:  # noqa: PT011
        grouped_conv2d(**args)
    with pytest.raises(type(real.value)) as fake:
        grouped_conv2d(**meta)
    message = str(real.value).rsplit("csrc/torch/operator", 1)[-1].split(", ", 1)[-1]
    assert message.split("\n")[0] in str(fake.value)


def test_gradient_operators_check_their_arguments():
    ops = torch.ops.resnext_kernels
    grad, weight, input = torch.randn(1, 8, 5, 5), torch.randn(8, 2, 3, 3), torch.randn(1, 8, 5, 5)
    geometry = ([1, 1], [1, 1], [1, 1], 4)
    with pytest.raises(RuntimeError, match=r"expected grad_output of size \[1, 8, 6, 6\], got \[1, 8, 5, 5\]"):
        ops.grouped_conv2d_grad_input(grad, weight, [6, 6], *geometry)
    with pytest.raises(RuntimeError, match=r"expected grad_output of size \[1, 8, 7, 7\], got \[1, 8, 5, 5\]"):
        ops.grouped_conv2d_grad_weight(grad, input, [1, 1], *geometry)
    with pytest.raises(RuntimeError, match="of one dtype"):
        ops.grouped_conv2d_grad_input(grad, weight.double(), [5, 5], *geometry)
    with pytest.raises(RuntimeError, match="divisible by groups=3"):
        ops.grouped_conv2d_grad_weight(grad, input, [3, 3], [1, 1], [1, 1], [1, 1], 3)
    with pytest.raises(RuntimeError, match="expected input_hw"):
        ops.grouped_conv2d_grad_input(grad, weight, [5, 5, 5], *geometry)


def test_unknown_kernel_lists_the_known_ones():
    with pytest.raises(RuntimeError, match=r"expected kernel to be one of \[.*fprop_reference\], got 'fastest'"):
        grouped_conv2d(**_conv_args(), kernel="fastest")


def test_named_kernel_that_cannot_run_says_why():
    names = [name for name, why in explain("fprop", **_conv_args(dilation=2)).entries if why]
    for name in names:
        with pytest.raises(RuntimeError, match=f"kernel '{name}' cannot run this problem: "):
            grouped_conv2d(**_conv_args(dilation=2), padding=2, kernel=name)
    with pytest.raises(RuntimeError, match=r"PyTorch's own convolution: dtype torch\.complex64"):
        grouped_conv2d(
            torch.randn(1, 8, 5, 5).cfloat(), torch.randn(8, 2, 3, 3).cfloat(), groups=4, kernel="fprop_reference"
        )


# --- what runs


@pytest.mark.parametrize(
    ("weight_size", "kwargs", "reason"),
    [
        ((8, 2, 1, 1), {"groups": 4}, "1x1 kernel"),
        ((8, 2, 5, 5), {"groups": 4, "padding": 2}, "5x5 kernel"),
        ((8, 8, 3, 3), {"padding": 1}, "dense"),
        ((8, 1, 3, 3), {"padding": 1, "groups": 8}, "depthwise"),
    ],
)
def test_what_the_kernels_do_not_cover_goes_to_pytorch(weight_size, kwargs, reason):
    input, weight = torch.randn(1, 8, 6, 6), torch.randn(weight_size)
    with OperatorLog() as log:
        output = grouped_conv2d(input, weight, **kwargs)
    assert log.names == ["aten::convolution"]
    assert torch.equal(output, F.conv2d(input, weight, **kwargs))
    explanation = explain("fprop", input, weight, **kwargs)
    assert explanation.kernel is None
    assert reason in str(explanation)


def test_complex_goes_to_pytorch():
    input, weight = torch.randn(1, 8, 6, 6).cfloat(), torch.randn(8, 2, 3, 3).cfloat()
    assert torch.equal(grouped_conv2d(input, weight, groups=4), F.conv2d(input, weight, groups=4))
    assert "complex64" in explain("fprop", input, weight, groups=4).reason


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_explain_names_the_kernel_that_runs(op):
    args = _conv_args(padding=1)
    explanation = explain(op, **args)
    assert explanation.kernel == next(name for name, why in explanation.entries if not why)
    assert explanation.entries[-1] == (f"{op}_reference", "")
    assert f"runs: {explanation.kernel}" in str(explanation)


def test_explain_tells_of_copies_and_bad_arguments():
    args = _conv_args(input=torch.randn(1, 8, 5, 10)[..., ::2])
    assert explain("fprop", **args).copies == ("input",)
    assert explain("fprop", **_conv_args()).copies == ()
    with pytest.raises(ValueError, match=r"expected op to be one of \('fprop', .*\), got 'forward'"):
        explain("forward", **_conv_args())
    with pytest.raises(RuntimeError, match="to have 8 channels"):
        explain("fprop", **_conv_args(input=torch.randn(1, 6, 5, 5)))


def test_only_the_needed_gradients_are_computed():
    for needs, expected in [
        ((True, False), ["grouped_conv2d_grad_input"]),
        ((False, True), ["grouped_conv2d_grad_weight"]),
        ((True, True), ["grouped_conv2d_grad_input", "grouped_conv2d_grad_weight"]),
    ]:
        input, weight = torch.randn(1, 8, 5, 5), torch.randn(8, 2, 3, 3)
        input.requires_grad_(needs[0])
        weight.requires_grad_(needs[1])
        for convolve in (grouped_conv2d, GroupedConv2dFunction.apply):
            output = convolve(input, weight, None, (1, 1), (1, 1), (1, 1), 4)
            with OperatorLog() as log:
                output.backward(torch.ones_like(output))
            assert [name for name in log.names if name.startswith("grouped")] == expected


def test_frozen_weight_keeps_only_itself_alive():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        grouped_conv2d(torch.randn(1, 8, 5, 5, requires_grad=True), torch.randn(8, 2, 3, 3), padding=1, groups=4)
    assert saved == [(8, 2, 3, 3)]


def test_results_do_not_depend_on_the_thread_count():
    def passes():
        torch.manual_seed(1)  # large enough that the binding gives every thread a share
        args = [torch.randn(size, requires_grad=True) for size in ((4, 32, 40, 40), (32, 4, 3, 3), (32,))]
        output = grouped_conv2d(*args, padding=1, groups=8)
        return [output, *torch.autograd.grad(output, args, torch.randn_like(output))]

    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(passes())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    input, weight, bias = torch.randn(2, 8, 6, 6), torch.randn(8, 2, 3, 3), torch.randn(8)
    params = [weight.requires_grad_(), bias.requires_grad_()]
    with torch.autocast("cpu", dtype):
        output = grouped_conv2d(input, *params, padding=1, groups=4)
        wide = grouped_conv2d(input.double(), *(p.double() for p in params), padding=1, groups=4)
    assert output.dtype == dtype
    assert wide.dtype == torch.float64
    output.sum().backward()
    assert [p.grad.dtype for p in params] == [torch.float32, torch.float32]


def test_flop_counter_agrees_with_conv2d():
    input, weight = torch.randn(2, 8, 6, 6), torch.randn(8, 2, 3, 3)
    counts = []
    for conv in (grouped_conv2d, F.conv2d):
        with FlopCounterMode(display=False) as counter:
            conv(input, weight, stride=2, padding=1, groups=4)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * 2 * 8 * 3 * 3 * 2 * 9
    leaves = input.requires_grad_(), weight.requires_grad_(), torch.zeros(8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        grouped_conv2d(*leaves, stride=2, padding=1, groups=4).sum().backward()
    assert counter.get_total_flops() == 3 * counts[0]


def test_torch_function_mode_sees_our_function():
    class Mode(torch.overrides.TorchFunctionMode):
        seen = ()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen += (func,)
            return func(*args, **(kwargs or {}))

    class Sub(torch.Tensor):
        pass

    with Mode() as mode:
        output = grouped_conv2d(torch.randn(1, 4, 5, 5).as_subclass(Sub), torch.randn(4, 2, 3, 3), groups=2)
    assert grouped_conv2d in mode.seen
    assert isinstance(output, Sub)


def test_device_without_kernels_gets_one_sentence():
    """CPU tensors dispatched by hand to the CUDA kernels: an error, with or without those, and never a launch."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    x, weight, rest = torch.randn(1, 4, 5, 5), torch.randn(4, 2, 3, 3), ([1, 1], [1, 1], [1, 1], 2)
    for name, first, *args in (
        ("grouped_conv2d", "input", x, weight, None, *rest),
        ("grouped_conv2d_grad_input", "grad_output", x, weight, [5, 5], *rest),
        ("grouped_conv2d_grad_weight", "grad_output", x, x, [3, 3], *rest),
        ("grouped_conv2d_grad_weight_bias", "grad_output", x, x, [3, 3], *rest),
    ):
        op = getattr(torch.ops.resnext_kernels, name).default
        expected = "has no kernel for tensors on" if _ops.why_no_cuda else f"expected {first} on a CUDA device, got cpu"
        with pytest.raises((NotImplementedError, RuntimeError), match=expected):
            op.redispatch(keys, *args)


def test_a_cuda_tensor_is_told_what_a_cpu_build_lacks(monkeypatch):
    monkeypatch.setattr(_ops, "why_no_cuda", "this installation was built without its CUDA library")
    with FakeTensorMode():
        tensor = torch.empty(1, device="cuda")
    words = r"on cuda:0: this installation was built without its CUDA library\. .* RESNEXT_KERNELS_CUDA=1 .*\.conv2d\.$"
    with pytest.raises(NotImplementedError, match=words):
        _ops._no_kernel(tensor)


def test_tensors_on_several_devices_are_refused():
    input, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 2, 3, 3, device="meta")
    with pytest.raises(RuntimeError, match="on one device"):
        torch.ops.resnext_kernels.grouped_conv2d(input, weight, None, 1, 1, 1, 2)
