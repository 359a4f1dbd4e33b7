"""VGG19's chain over two batches at once: the values and gradients of two passes, and less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from srgan_fast.errors import WeightsError
from srgan_fast.features import VGG19, Chain, Features, Layer, SqueezeNet, load_squeezenet, load_vgg19
from srgan_fast.train import losses


class TwoPasses:
    """What a reader of the paper writes: autograd's own pass for each of the two."""

    def __init__(self, features: nn.Module) -> None:
        self.features = features

    def __call__(self, image: Tensor) -> Tensor:
        return self.features(image)

    def pair(self, sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            want = self.features(hr)
        return self.features(sr), want


def vgg(i: int, j: int, convention: str = "torchvision") -> VGG19:
    torch.manual_seed(0)
    network = VGG19(i, j, convention)
    for module in network.features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # what is left of torch's own start after a few layers is nothing
    return network


def images(count: int = 2, size: int = 24) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    sr, hr = (torch.rand(count, 3, size, size + 4, generator=random) * 2 - 1 for _ in range(2))
    return sr.requires_grad_(), hr


def loss_and_gradient(features: Features, reduction: str, sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
    loss = losses.PerceptualLoss(features, reduction)(sr, hr)
    (gradient,) = torch.autograd.grad(loss, sr)
    return loss.detach(), gradient


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("i", "j", "convention"), [(1, 2, "caffe"), (2, 2, "torchvision"), (3, 4, "torchvision")])
def test_one_pass_is_two(i: int, j: int, convention: str, layout: torch.memory_format) -> None:
    network = vgg(i, j, convention).to(memory_format=layout)
    sr, hr = images()
    for reduction in ("paper", "mean"):
        got = loss_and_gradient(network, reduction, sr, hr.to(memory_format=layout))
        want = loss_and_gradient(TwoPasses(network), reduction, sr, hr)
        for a, b in zip(got, want, strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_squeezenet_has_the_gradient_of_sr_alone() -> None:
    network = SqueezeNet()
    sr, hr = images(1, 48)
    got = loss_and_gradient(network, "mean", sr, hr.requires_grad_())
    want = loss_and_gradient(TwoPasses(network), "mean", sr, hr)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not network.pair(sr, hr)[1].requires_grad


def test_the_chain_by_differences() -> None:
    torch.manual_seed(0)
    shapes = ((3, 4, False), (4, 5, True), (5, 4, True), (4, 2, False))
    layers = [
        Layer(torch.randn(out, into, 3, 3, dtype=torch.float64), torch.randn(out, dtype=torch.float64), pooled)
        for into, out, pooled in shapes
    ]
    sr, hr = (torch.randn(2, 3, 9, 8, dtype=torch.float64) for _ in range(2))
    run: Callable[[Tensor], Tensor] = lambda image: Chain.apply(image, hr, layers)[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, sr.requires_grad_(), atol=1e-6)


def test_neither_hr_nor_weights_get_a_gradient() -> None:
    network = vgg(2, 1).requires_grad_()
    sr, hr = images()
    hr.requires_grad_()
    losses.PerceptualLoss(network, "mean")(sr, hr).backward()
    assert sr.grad is not None
    assert sr.grad.abs().max() > 0
    assert hr.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())


def test_autocast_computes_in_its_dtype() -> None:
    network = vgg(2, 2)
    sr, hr = images()
    want = loss_and_gradient(TwoPasses(network), "mean", sr, hr)
    with torch.autocast("cpu", torch.bfloat16):
        assert [maps.dtype for maps in network.pair(sr, hr)] == [torch.bfloat16] * 2
        loss = losses.PerceptualLoss(network, "mean")(sr, hr)
    (gradient,) = torch.autograd.grad(loss, sr)
    assert gradient.dtype == torch.float32
    assert loss.item() != want[0].item()
    assert abs(loss.item() - want[0].item()) < 0.05 * want[0].item()
    assert (gradient - want[1]).norm() < 0.1 * want[1].norm()


def test_converted_weights_follow_the_network() -> None:
    network = vgg(1, 2)
    sr, hr = images()
    with torch.autocast("cpu", torch.bfloat16):
        before = network.pair(sr, hr)[0]
        network.load_state_dict({name: value * 2 for name, value in network.state_dict().items()})
        after = network.pair(sr, hr)[0]
        want = copy.deepcopy(network)(sr)
    assert not torch.equal(before, after)
    assert torch.equal(after, want)


def kept_bytes(features: Features) -> int:
    """Bytes of storage that the graph of the loss holds until backward, weights left out."""
    sr, hr = images(2, 32)
    network = features.features if isinstance(features, TwoPasses) else features
    assert isinstance(network, nn.Module)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses.PerceptualLoss(features, "mean")(sr, hr)
    return sum(storage.nbytes() for pointer, storage in held.items() if pointer not in weights)


def test_less_is_kept_for_the_gradient() -> None:
    network = vgg(4, 2)
    assert kept_bytes(network) < 0.5 * kept_bytes(TwoPasses(network))


def test_constants_are_no_weights() -> None:
    for network in (VGG19(1, 1), VGG19(1, 1, "caffe"), SqueezeNet()):
        names = {name for name, _ in network.named_buffers()}
        assert "mean" in names
        assert not names & network.state_dict().keys()


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path) -> None:
    tensors = {key: value[..., None] for key, value in VGG19(2, 2).state_dict().items()}
    torch.save(tensors, tmp_path / "vgg.pth")
    torch.save({"conv1": (torch.zeros(1), torch.zeros(2, 3))}, tmp_path / "squeezenet.pth")
    said = r"^expected .*, got other tensors \(.*\); give the file of that network$"
    with pytest.raises(WeightsError, match=said):
        load_vgg19(2, 2, tmp_path / "vgg.pth", "torchvision")
    with pytest.raises(WeightsError, match=said):
        load_squeezenet(tmp_path / "squeezenet.pth")
