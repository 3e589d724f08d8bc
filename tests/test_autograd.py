"""Derivatives of every order and kind, by PyTorch's own checkers, of the front, the operators and the Function."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap

from resnext_kernels import GroupedConv2dFunction, grouped_conv2d

from .cases import CASES, OperatorLog, tensors

pytestmark = pytest.mark.usefixtures("own_kernels")

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def _function(input, weight, bias, stride=1, padding=0, dilation=1, groups=1):
    pairs = [value if isinstance(value, tuple) else (value, value) for value in (stride, padding, dilation)]
    return GroupedConv2dFunction.apply(input, weight, bias, *pairs, groups)


FRONTS = pytest.mark.parametrize("front", [grouped_conv2d, _function], ids=["grouped_conv2d", "Function"])


def _of_tensors(front, kwargs, bias):
    """The convolution as a function of its tensors alone."""
    return (lambda *t: front(*t, **kwargs)) if bias else (lambda *t: front(*t, None, **kwargs))


def test_only_what_is_recorded_takes_the_way_by_autograd():
    """Its Function is Python and doubles the overhead of a call."""
    images, weight = torch.randn(1, 4, 3, 3), torch.randn(4, 2, 3, 3)

    def functions_of(image):
        names = set()
        sys.setprofile(lambda frame, *_: names.add((Path(frame.f_code.co_filename).name, frame.f_code.co_name)))
        grouped_conv2d(image, weight, padding=1, groups=2)
        sys.setprofile(None)
        return names

    by_autograd = ("_autograd.py", "_forward_and_setup")
    assert by_autograd not in functions_of(images)
    assert by_autograd in functions_of(images.clone().requires_grad_())


@FRONTS
@BIAS
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case, memory_format, bias, front):
    *args, kwargs = tensors(case, memory_format=memory_format, bias=bias)
    args = [t for t in args if t is not None]
    function = _of_tensors(front, kwargs, bias)
    assert gradcheck(
        function, args, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True, fast_mode=True
    )
    assert gradgradcheck(function, args, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("case", ["stride 1", "stride 2", "dilation", "more outputs than inputs"])
def test_gradcheck_entry_by_entry(case):
    *args, kwargs = tensors(case)
    assert gradcheck(lambda *t: grouped_conv2d(*t, **kwargs), args, check_forward_ad=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("missing", ["input", "weight", "weight_bias"])
def test_gradient_operators_are_differentiable(case, missing):
    input, weight, _, kwargs = tensors(case)
    output = torch.randn_like(F.conv2d(input, weight, None, **kwargs)).requires_grad_()
    stride, padding, dilation = (kwargs.get(k, d) for k, d in (("stride", 1), ("padding", 0), ("dilation", 1)))
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (stride, padding, dilation)]
    if missing == "input":
        args, size = (output, weight), input.shape[2:]
    else:
        args, size = (output, input), weight.shape[2:]
    op = getattr(torch.ops.resnext_kernels, f"grouped_conv2d_grad_{missing}")
    function = lambda a, b: op(a, b, size, *pairs, kwargs["groups"])  # noqa: E731
    assert gradcheck(function, args, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, args, fast_mode=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_opcheck(case, requires_grad):
    input, weight, bias, kwargs = tensors(case, dtype=torch.float32, requires_grad=requires_grad)
    pairs = [
        v if isinstance(v, tuple) else (v, v)
        for v in (kwargs.get("stride", 1), kwargs.get("padding", 0), kwargs.get("dilation", 1))
    ]
    ops, groups = torch.ops.resnext_kernels, kwargs["groups"]
    for image in (input, input.detach().to(memory_format=torch.channels_last).requires_grad_(requires_grad)):
        output = ops.grouped_conv2d(image, weight, bias, *pairs, groups).detach().requires_grad_(requires_grad)
        torch.library.opcheck(ops.grouped_conv2d.default, (image, weight, bias, *pairs, groups))
        torch.library.opcheck(ops.grouped_conv2d_grad_input.default, (output, weight, image.shape[2:], *pairs, groups))
        for operator in (ops.grouped_conv2d_grad_weight.default, ops.grouped_conv2d_grad_weight_bias.default):
            torch.library.opcheck(operator, (output, image, weight.shape[2:], *pairs, groups))


# --- torch.func


@FRONTS
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_jvp_by_any_of_the_tensors(which, front):
    *args, kwargs = tensors("stride 2", requires_grad=False)
    tangents = tuple(torch.randn_like(t) if i in which else torch.zeros_like(t) for i, t in enumerate(args))
    some = lambda conv: lambda *t: conv(*[t[which.index(i)] if i in which else a for i, a in enumerate(args)], **kwargs)  # noqa: E731
    primals, tangents = tuple(args[i] for i in which), tuple(tangents[i] for i in which)
    ours, theirs = (jvp(some(conv), primals, tangents) for conv in (front, F.conv2d))
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)


@FRONTS
def test_grad_and_hessian(front):
    input, weight, bias, kwargs = tensors("stride 1", requires_grad=False)
    loss = lambda conv: lambda w: (conv(input, w, bias, **kwargs) ** 3).sum()  # noqa: E731
    torch.testing.assert_close(grad(loss(front))(weight), grad(loss(F.conv2d))(weight))
    small = weight[:, :, :1, :1].clone()
    wide = lambda conv: lambda s: loss(conv)(s.expand(weight.shape))  # noqa: E731
    torch.testing.assert_close(hessian(wide(front))(small), hessian(wide(F.conv2d))(small))
    torch.testing.assert_close(jacfwd(grad(wide(front)))(small), jacfwd(grad(wide(F.conv2d)))(small))


def test_derivative_of_a_derivative_through_both_operators():
    """Grad of a function of grad_input and grad_weight, by every argument."""
    *args, kwargs = tensors("stride 2")

    def second(conv):
        output = conv(*args, **kwargs)
        first = torch.autograd.grad((output**2).sum(), args, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), args)

    for a, b in zip(second(grouped_conv2d), second(F.conv2d), strict=True):
        torch.testing.assert_close(a, b)


# --- vmap: every combination of mapped tensors, at several mapped dimensions, of all three operators


@FRONTS
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mapped", ["i", "w", "b", "iw", "ib", "wb", "iwb"])
def test_vmap(mapped, case, front):
    size = 3
    *args, kwargs = tensors(case, requires_grad=False)
    in_dims = [None, None, None]
    for position, letter in enumerate("iwb"):
        if letter in mapped:
            dim = position  # a different one for each
            args[position] = torch.randn(*args[position].shape, size, dtype=torch.float64).movedim(-1, min(dim, 1))
            in_dims[position] = min(dim, 1)
    ours = vmap(lambda *t: front(*t, **kwargs), tuple(in_dims))(*args)
    for i in range(size):
        one = [t if d is None else t.select(d, i) for t, d in zip(args, in_dims, strict=True)]
        torch.testing.assert_close(ours[i], F.conv2d(*one, **kwargs))


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0), (1, 0)])
@pytest.mark.parametrize("missing", ["input", "weight", "weight_bias"])
@pytest.mark.parametrize("case", ["stride 2", "more outputs than inputs", "uneven in height and width"])
def test_vmap_of_gradient_operators(case, missing, mapped):
    input, weight, _, kwargs = tensors(case, requires_grad=False)
    output = F.conv2d(input, weight, None, **kwargs)
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (kwargs.get("stride", 1), kwargs.get("padding", 0), (1, 1))]
    first, second, size = (output, weight, input.shape) if missing == "input" else (output, input, weight.shape)
    op = getattr(torch.ops.resnext_kernels, f"grouped_conv2d_grad_{missing}")
    function = lambda a, b: op(a, b, size[2:], *pairs, kwargs["groups"])  # noqa: E731
    args = [
        t if d is None else torch.randn(*t.shape, 3, dtype=torch.float64).movedim(-1, d)
        for t, d in zip((first, second), mapped, strict=True)
    ]
    ours = vmap(function, mapped)(*args)
    for i in range(3):
        one = [t if d is None else t.select(d, i) for t, d in zip(args, mapped, strict=True)]
        results = zip(ours, function(*one), strict=True) if missing == "weight_bias" else [(ours, function(*one))]
        for all_of_them, expected in results:
            torch.testing.assert_close(all_of_them[i], expected)


def test_nested_vmap():
    input, weight, bias, kwargs = tensors("stride 1", requires_grad=False)
    inputs, weights = torch.randn(2, *input.shape).double(), torch.randn(3, *weight.shape).double()
    both = lambda conv: vmap(lambda i: vmap(lambda w: conv(i, w, bias, **kwargs))(weights))(inputs)  # noqa: E731
    torch.testing.assert_close(both(grouped_conv2d), both(F.conv2d))


def test_per_sample_gradients():
    from resnext_kernels import GroupedConv2d

    conv = GroupedConv2d(8, 8, 3, padding=1, groups=4).double()
    params, images = dict(conv.named_parameters()), torch.randn(5, 8, 6, 6).double()
    loss = lambda p, image: functional_call(conv, p, (image[None],)).square().sum()  # noqa: E731
    ours = vmap(grad(loss), (None, 0))(params, images)
    for i, image in enumerate(images):
        for name, value in grad(loss)(params, image).items():
            torch.testing.assert_close(ours[name][i], value)


# --- the bias's gradient comes with the weight's


def _backward(wanted, **options):
    """The gradients of the tensors at some places, the operators that backward calls, and what they were given."""
    *args, kwargs = tensors("stride 2", requires_grad=False, **options)
    output = grouped_conv2d(*[t.requires_grad_(i in wanted) for i, t in enumerate(args)], **kwargs)
    grad_output = torch.randn_like(output)
    with OperatorLog() as log:
        grads = torch.autograd.grad(output, [args[i] for i in wanted], grad_output)
    return grads, log.names, (grad_output, *args)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_backward_reads_grad_output_once_for_weight_and_bias(dtype):
    grads, calls, (grad_output, image, weight, _) = _backward((0, 1, 2), dtype=dtype)
    assert sorted(calls) == ["grouped_conv2d_grad_input", "grouped_conv2d_grad_weight_bias"]
    operator = torch.ops.resnext_kernels.grouped_conv2d_grad_weight
    assert torch.equal(grads[1], operator(grad_output, image, weight.shape[2:], (2, 2), (1, 1), (1, 1), 2))
    exact, magnitude = grad_output.double().sum((0, 2, 3)), grad_output.double().abs().sum((0, 2, 3))
    unit = torch.finfo(dtype).eps / 2
    terms = grad_output.numel() // grad_output.shape[1]
    sums = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2 * (terms - 1)
    assert ((grads[2].double() - exact).abs() <= magnitude * sums + exact.abs() * unit * 1.01).all()


def test_backward_of_a_part_calls_no_more_than_that():
    assert _backward((1,))[1] == ["grouped_conv2d_grad_weight"]
    assert _backward((2,))[1] == ["aten::sum.dim_IntList"]
    assert _backward((1, 2))[1] == ["grouped_conv2d_grad_weight_bias"]


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_jvp_of_the_operator_with_two_results(which):
    image, weight, _, kwargs = tensors("stride 1", requires_grad=False)
    args = [torch.randn_like(F.conv2d(image, weight, **kwargs)), image]
    op, geometry = torch.ops.resnext_kernels.grouped_conv2d_grad_weight_bias, ((3, 3), (1, 1), (1, 1), (1, 1), 4)
    some = lambda *t: op(*[t[which.index(i)] if i in which else a for i, a in enumerate(args)], *geometry)  # noqa: E731
    primals = tuple(args[i] for i in which)
    tangents = tuple(torch.randn_like(t) for t in primals)
    (_, bias), (weight_tangent, bias_tangent) = jvp(some, primals, tangents)
    torch.testing.assert_close(bias, args[0].sum((0, 2, 3)))
    expected = tangents[0].sum((0, 2, 3)) if 0 in which else torch.zeros_like(bias)
    torch.testing.assert_close(bias_tangent, expected)
    step = [some(*[p + s * t for p, t in zip(primals, tangents, strict=True)])[0] for s in (0.5, -0.5)]
    torch.testing.assert_close(weight_tangent, step[0] - step[1])  # exact: at most quadratic


# --- the machinery around backward


def test_backward_twice_needs_retain_graph():
    *args, kwargs = tensors("stride 1")
    output = grouped_conv2d(*args, **kwargs).sum()
    output.backward(retain_graph=True)
    output.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        output.backward()


def test_in_place_change_is_detected():
    *args, kwargs = tensors("stride 1")
    output = grouped_conv2d(*args, **kwargs).sum()
    with torch.no_grad():
        args[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    *args, kwargs = tensors("stride 1")
    run = lambda *t: grouped_conv2d(*t, **kwargs)  # noqa: E731
    grads = torch.autograd.grad(run(*args).square().sum(), args)
    torch.utils.checkpoint.checkpoint(run, *args, use_reentrant=reentrant).square().sum().backward()
    for a, b in zip(grads, args, strict=True):
        assert torch.equal(a, b.grad)


def test_no_grad_and_inference_mode_equal_grad_mode():
    *args, kwargs = tensors("stride 1")
    expected = grouped_conv2d(*args, **kwargs)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output = grouped_conv2d(*args, **kwargs)
        assert not output.requires_grad
        assert torch.equal(output, expected)


def test_everything_runs_under_deterministic_algorithms():
    *args, kwargs = tensors("stride 1", dtype=torch.float32)
    step = lambda: torch.autograd.grad(grouped_conv2d(*args, **kwargs).square().sum(), args)  # noqa: E731
    expected = step()
    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(a, b) for a, b in zip(step(), expected, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@FRONTS
@pytest.mark.parametrize("under_a_transform", [False, True])
def test_forward_mode_needs_no_grad_mode(front, under_a_transform):
    """As in PyTorch: torch.no_grad turns off what records a graph, not tangents."""
    input, weight = torch.randn(2, 8, 5, 6), torch.randn(8, 2, 3, 3)
    tangent = torch.randn_like(input)
    with torch.no_grad():
        if under_a_transform:
            _, got = jvp(lambda x: front(x, weight, None, padding=1, groups=4), (input,), (tangent,))
        else:
            with forward_ad.dual_level():
                output = front(forward_ad.make_dual(input, tangent), weight, None, padding=1, groups=4)
                got = forward_ad.unpack_dual(output).tangent
    torch.testing.assert_close(got, F.conv2d(tangent, weight, padding=1, groups=4))
