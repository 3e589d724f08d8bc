"""Two processes over gloo give the gradients of one: DistributedDataParallel and FSDP2 (fully_shard)."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

from resnext_kernels import GroupedConv2d
from resnext_kernels.network import ResNeXt

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo")
WORLD = 2


def make_model():
    """A small ResNeXt without batch statistics, so that a batch may be split."""
    torch.manual_seed(0)
    return ResNeXt((1, 1), 4, 16, num_classes=5, norm_layer=lambda channels: nn.GroupNorm(4, channels)).double()


def make_batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=generator), torch.tensor([0, 1, 2, 3])


def train(model, images, labels):
    """Two optimizer steps, so that wrong gradients would show in the weights too."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def work(rank, engine, path):
    """One process: its half of the batch; the first one saves what it got."""
    dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    model = make_model()
    images, labels = (tensor.chunk(WORLD)[rank] for tensor in make_batch())
    if engine == "ddp":
        train(nn.parallel.DistributedDataParallel(model), images, labels)
        result = {name: (value, value.grad) for name, value in model.named_parameters()}
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (WORLD,))
        for block in (*model.layer1, *model.layer2):
            fully_shard(block, mesh=mesh)
        train(fully_shard(model, mesh=mesh), images, labels)
        result = {name: (value.full_tensor(), value.grad.full_tensor()) for name, value in model.named_parameters()}
    if rank == 0:
        torch.save({name: tuple(t.detach() for t in pair) for name, pair in result.items()}, f"{path}/result.pth")
    dist.destroy_process_group()
    # Not Python's own end: a thread of Gloo outlives its group under FSDP2, and one that lets go of a tensor while the
    # interpreter ends aborts the process (pytorch/pytorch#179291); that was one run in twenty.
    os._exit(0)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(engine, tmp_path):
    torch.multiprocessing.spawn(work, (engine, str(tmp_path)), nprocs=WORLD)
    result = torch.load(tmp_path / "result.pth", weights_only=True)
    model = make_model()
    assert sum(isinstance(module, GroupedConv2d) for module in model.modules()) == 2
    initial = copy.deepcopy(model.state_dict())
    train(model, *make_batch())
    assert result.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, initial[name]), name
        for ours, expected in zip(result[name], (parameter, parameter.grad), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12, msg=name)
