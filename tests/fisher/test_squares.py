from __future__ import annotations

import pytest
import torch
from oracle import bert, gpt2, llama, logits_of, per_example, resnet, rows_of
from torch import nn

from hf_prune.fisher.squares import Squares

NETWORKS = {
    "resnet": resnet,
    "gpt2 tied, right": gpt2,
    "gpt2 untied, left": lambda: gpt2("left", tied=False),
    "gpt2 tied, left": lambda: gpt2("left"),
    "bert right": bert,
    "bert left": lambda: bert("left"),
    "llama untied, right": llama,
    "llama tied, left": lambda: llama("left", tied=True),
}


def split(inputs):
    """Tensors of the batch, and other arguments."""
    return {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}


def run(squares, inputs):
    return squares.forward(inputs["x"]) if "x" in inputs else squares.forward(**inputs)


def gradient(out, inputs):
    """A gradient at the logits, 0 at padding."""
    torch.manual_seed(7)
    back = torch.randn_like(out)
    mask = inputs.get("attention_mask")
    return back if mask is None or out.ndim < 3 else back * mask[..., None]


def compare(network, inputs, rtol=1e-10, **options):
    squares = Squares(network, **options)
    tap = run(squares, inputs)
    out = logits_of(tap.output)
    back = gradient(out, inputs)
    rows = tap.rows(out, back, keep=True)
    expected = rows_of(squares, per_example(network, split(inputs), back))
    assert expected.any(1).all()
    torch.testing.assert_close(rows, expected, rtol=rtol, atol=1e-14 * float(expected.max()))
    torch.testing.assert_close(tap.sums(out, back, keep=True), expected.sum(0), rtol=rtol, atol=1e-14)
    torch.testing.assert_close(tap.norms(out, back), expected.sum(1), rtol=rtol, atol=1e-14)
    return squares


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_one_backward_per_example(name):
    network, inputs = NETWORKS[name]()
    squares = compare(network, inputs, biases=True)
    assert squares.size == sum(
        p.numel() if p.ndim < 2 else p.shape[1 if "c_" in n else 0] for n, p in network.named_parameters()
    )
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def one_layer(network, x, **options):
    return compare(network.double().eval(), {"x": x.double() if x.is_floating_point() else x}, biases=True, **options)


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_the_gradient_or_the_products_of_inputs_whichever_costs_less(steps):
    one_layer(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7)), torch.randn(3, steps, 6))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 3), "padding": (2, 0), "dilation": (2, 1)},
        {"groups": 2, "dilation": 2, "padding": "same"},
        {"groups": 4, "padding": 1, "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "circular", "bias": False},
    ],
)
@pytest.mark.parametrize("size", [(5, 6), (13, 12)])
def test_convolutions(options, size):
    torch.manual_seed(0)
    one_layer(nn.Sequential(nn.Conv2d(4, 8, 3, **options)), torch.randn(3, 4, *size))


def test_convolutions_in_one_dimension():
    torch.manual_seed(0)
    one_layer(nn.Sequential(nn.Conv1d(4, 6, 3, 2, 1, groups=2), nn.BatchNorm1d(6)), torch.randn(3, 4, 11))


def test_norms():
    torch.manual_seed(0)
    norms = [
        nn.LayerNorm((3, 6)),
        nn.RMSNorm(6),
        nn.RMSNorm(6, eps=1e-3),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(6, bias=False),
    ]
    for norm in norms:
        for p in norm.parameters():
            nn.init.normal_(p)
    one_layer(nn.Sequential(*norms), torch.randn(3, 4, 3, 6))


def test_repeated_ids_of_an_example_are_added_before_squaring_and_padding_has_no_gradient():
    torch.manual_seed(0)
    one_layer(nn.Sequential(nn.Embedding(5, 3, padding_idx=4), nn.Linear(3, 2)), torch.tensor([[1, 1, 4], [0, 2, 0]]))


def test_the_vector_of_two_positions():
    g, a = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]]), torch.tensor([[[1.0, 0.0], [2.0, 1.0]]])
    squares = Squares(nn.Linear(2, 2, bias=False).eval())
    tap = squares.forward(a)
    assert tap.rows(tap.output, g, keep=True).tolist() == [[58.0, 1.0]]
    assert (tap.sums(tap.output, g, keep=True) / squares.fan_in).tolist() == [29.0, 0.5]
    assert tap.norms(tap.output, g).tolist() == [59.0]
