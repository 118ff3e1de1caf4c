"""Networks that are put together in unusual ways: what has no formula is worked out or refused, never left out."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from oracle import gpt2, logits_of, per_example, rows_of
from test_squares import compare, gradient, one_layer, split
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_prune.fisher.squares import Squares, position_layers


class Written(nn.Module):
    """A network from a function."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.call = forward

    def forward(self, x):
        return self.call(self, x)


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0)

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def folded(self, x):
    return self.one(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_a_layer_called_several_times_adds_before_it_squares():
    def forward(self, x):
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = torch.tanh(self.into(x[:, t]) + self.back(h))
        return h

    one_layer(Written(forward, into=nn.Linear(4, 4), back=nn.Linear(4, 4)), torch.randn(3, 5, 4))


def test_a_weight_shared_by_two_layers_and_by_a_layer_and_a_convolution():
    network = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Unflatten(2, (4, 1)), nn.Flatten(2))
    network[2].weight = network[0].weight
    one_layer(network, torch.randn(3, 5, 4))


def test_sequences_first():
    network = Written(
        lambda self, x: self.b(self.norm(self.a(x.transpose(0, 1)))).transpose(0, 1),
        a=nn.Linear(4, 6), norm=nn.LayerNorm(6), b=nn.Linear(6, 2),
    )  # fmt: skip
    for b, t in ((3, 3), (3, 5), (1, 4)):  # as many positions as rows too
        one_layer(network, torch.randn(b, t, 4))


def test_positions_that_all_rows_share():
    for view in (lambda p: p[None], lambda p: p):  # (1, t, d) and (t, d)
        network = Written(
            lambda self, x, view=view: self.out((self.words(x) + self.places(view(torch.arange(x.shape[1])))).tanh()),
            words=nn.Embedding(9, 4), places=nn.Embedding(6, 4), out=nn.Linear(4, 2),
        )  # fmt: skip
        one_layer(network, torch.randint(9, (5, 5)))
        one_layer(network, torch.randint(9, (1, 5)))


def test_operations_in_place():
    def forward(self, x):
        h = self.a(x)
        h += 1
        h = F.relu(self.b(h), inplace=True)
        return self.c(h)

    one_layer(Written(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2)), torch.randn(3, 4))

    def spoil(self, x):
        h = self.a(x)
        out = self.b(h)
        h += 1
        return out

    squares = Squares(Written(spoil, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval())
    tap = squares.forward(torch.randn(3, 4))
    with pytest.raises(ValueError, match="given was changed in place"):
        tap.norms(tap.output.sum())


@pytest.mark.parametrize(
    ("network", "uses"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)), "in_proj_weight"),
        (SequenceFirst(), "in_proj_weight"),
        (Recurrent(), "weight_ih_l0"),
        (nn.Sequential(nn.Linear(4, 4), nn.PReLU()), "PReLU"),
        (nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), "original"),
        (Written(lambda self, x: self.two(self.one(x), x), one=nn.Linear(4, 4), two=nn.Bilinear(4, 4, 3)), "'two'"),
        (Written(folded, one=nn.Linear(4, 2)), "one.weight"),
    ],
)  # fmt: skip
def test_what_has_no_formula_is_worked_out_with_a_warning(network, uses):
    with pytest.warns(UserWarning, match=f"{uses}.*no formula"):
        one_layer(network, torch.randn(3, 5, 4))


def test_attention_of_torch_in_rows_is_not_left_out_of_the_fast_path():
    network = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), 2).double().eval()
    x = torch.randn(3, 5, 4).double()
    back = torch.randn_like(x)
    with pytest.warns(UserWarning, match="out_proj.weight"):
        squares = Squares(network, biases=True)
        tap = squares.forward(x)
    torch.testing.assert_close(tap.rows(tap.output, back), rows_of(squares, per_example(network, {"x": x}, back)))
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_table_used_as_a_function_beside_its_layer():
    network = Written(lambda self, x: torch.tanh(self.words(x)) @ self.words.weight.T, words=nn.Embedding(9, 4))
    network.add_module("idle", nn.Linear(2, 2))  # never called
    with pytest.warns(UserWarning, match="words.weight"):
        squares = Squares(network.double().eval(), biases=True)
        tap = squares.forward(x := torch.randint(9, (3, 5)))
    back = torch.randn_like(tap.output)
    torch.testing.assert_close(tap.rows(tap.output, back), rows_of(squares, per_example(network, {"x": x}, back)))


def test_a_vision_transformer():
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8,
                       patch_size=4, num_labels=3)  # fmt: skip
    network = ViTForImageClassification(config).double().eval()
    with pytest.warns(UserWarning, match="cls_token"):
        compare(network, {"pixel_values": torch.randn(3, 3, 8, 8).double()}, biases=True)


def test_networks_that_do_not_keep_rows_apart_are_refused():
    network = Written(lambda self, x: self.out(x.flatten(0, 1)), out=nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match=r"the network returned \[\(5, 2\)\] for one row and \[\(10, 2\)\] for two"):
        Squares(network).forward(torch.randn(3, 5, 4))
    for mixing in (lambda self, x: self.out(x) - x.mean(), lambda self, x: self.out(x) + torch.randn(2)):
        with pytest.raises(ValueError, match="output for the first row changes by"):
            Squares(Written(mixing, out=nn.Linear(4, 2)).eval()).forward(torch.randn(3, 4))


def test_layers_hook_the_end_of_the_network_only():
    network, inputs = gpt2("left", tied=False)
    squares = Squares(network)
    whole = squares.forward(**inputs)
    back = gradient(whole.output.logits, inputs)
    rows = whole.rows(whole.output.logits, back)
    last = Squares(network, layers=["transformer.h.1", "transformer.ln_f"])
    grads = []
    network.transformer.h[1].ln_1.register_forward_pre_hook(lambda _, given: grads.append(given[0].requires_grad))
    tap = last.forward(**inputs)
    places = {block.name: block for block in squares.blocks}
    for block in last.blocks:
        other = places[block.name]
        torch.testing.assert_close(
            tap.rows(tap.output.logits, back, keep=True)[:, block.start : block.stop], rows[:, other.start : other.stop]
        )
    assert {block.name.split(".")[1] for block in last.blocks} == {"h", "ln_f"}
    assert grads and not any(grads)


def test_a_tied_head_that_is_skipped_leaves_the_table_as_if_untied():
    network, inputs = gpt2()
    squares = Squares(network, skip=["lm_head"])
    tap = squares.forward(**inputs)
    back = gradient(tap.output.logits, inputs)
    rows = tap.rows(tap.output.logits, back)
    network.lm_head.weight = nn.Parameter(network.lm_head.weight.detach().clone())
    expected = rows_of(squares, per_example(network, split(inputs), back))
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-14)


def test_positions_are_squared_one_by_one_after_the_last_mixing():
    network, inputs = gpt2(tied=False)
    able = position_layers(network, **inputs)
    assert able == ["transformer.h.1.attn.c_proj", "transformer.h.1.ln_2", "transformer.h.1.mlp.c_fc",
                    "transformer.h.1.mlp.c_proj", "transformer.ln_f", "lm_head"]  # fmt: skip
    squares = Squares(network, layers=able, biases=True, positions=able)
    tap = squares.forward(**inputs)
    out = tap.output.logits
    back, expected = gradient(out, inputs), 0
    for t in range(out.shape[1]):
        one = torch.zeros_like(out)
        one[:, t] = back[:, t]
        expected = expected + rows_of(squares, per_example(network, split(inputs), one))
    torch.testing.assert_close(tap.rows(out, back), expected, rtol=1e-10, atol=1e-14)

    for bad in ("transformer.h.1", "transformer.h.0.mlp", "transformer.wte"):
        with pytest.raises(ValueError, match="the network still mixes positions"):
            Squares(network, positions=[bad]).forward(**inputs)


def test_positions_of_a_tied_head_are_refused():
    network, inputs = gpt2(tied=True)
    with pytest.raises(ValueError, match="transformer.wte.weight is used 2 times"):
        tap = Squares(network, positions=["lm_head"]).forward(**inputs)
        tap.rows(tap.output.logits, torch.ones_like(tap.output.logits))


def test_both_estimators_have_the_same_mean_under_labels_of_the_model():
    network, inputs = gpt2(tied=False)
    able = ["transformer.h.1.mlp.c_fc", "transformer.ln_f"]
    sums = {}
    for positions in ((), able):
        tap = Squares(network, layers=able, positions=positions).forward(**inputs)
        out = tap.output.logits
        p = out.detach().softmax(-1)
        generator = torch.Generator().manual_seed(0)
        total = 0
        for _ in range(150):
            drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).reshape(out.shape[:2])
            back = (p - F.one_hot(drawn, out.shape[-1])) * inputs["attention_mask"][..., None]
            total = total + tap.sums(out, back, keep=True)
        sums[bool(positions)] = total
    assert float(sums[True].sum() / sums[False].sum()) == pytest.approx(1, abs=0.08)


def test_several_backward_passes_and_a_batch_of_padding_only():
    network, inputs = gpt2()
    squares = Squares(network)
    tap = squares.forward(**inputs)
    out = logits_of(tap.output)
    back = gradient(out, inputs)
    first = tap.sums(out, back, keep=True)
    torch.testing.assert_close(tap.sums(out, 2 * back, keep=True), 4 * first)
    assert not tap.rows(out, torch.zeros_like(out)).any()


def test_rows_do_not_depend_on_their_batch():
    network, inputs = gpt2("left")
    squares = Squares(network)
    tap = squares.forward(**inputs)
    back = gradient(tap.output.logits, inputs)
    rows = tap.rows(tap.output.logits, back)
    for n in range(3):
        one = squares.forward(**{k: v[n : n + 1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()})
        torch.testing.assert_close(one.rows(one.output.logits, back[n : n + 1])[0], rows[n], rtol=1e-9, atol=1e-14)


def test_bfloat16_has_its_products_in_float32():
    network, inputs = gpt2(tied=False)
    tap = Squares(network).forward(**inputs)
    back = gradient(tap.output.logits, inputs)
    exact = tap.sums(tap.output.logits, back)
    for cast in (False, True):
        squares = Squares(network.float() if cast else network.bfloat16())
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            tap = squares.forward(**inputs)
        rows = tap.rows(tap.output.logits, back.to(tap.output.logits.dtype), keep=True)
        assert rows.dtype == torch.float32
        sums = tap.sums(tap.output.logits, back.to(tap.output.logits.dtype))
        assert sums.dtype == torch.float64
        assert float((sums - exact).abs().sum() / exact.sum()) < 0.05


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda n: n.train(), "BatchNorm2d '1' is in train mode, in which it mixes the rows"),
        (lambda n: n[0].weight.data.fill_(torch.nan), "0.weight has weights that are not finite"),
        (lambda n: n.half(), "0.weight is float16, in which squared gradients underflow"),
    ],
)
def test_bad_networks(spoil, message):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    spoil(network)
    if "train" in message:
        network[0].eval()
        network.training = False
    with pytest.raises(ValueError, match=message):
        Squares(network).forward(torch.randn(2, 3, 5, 5))


def test_bad_arguments():
    network = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).eval()
    with pytest.raises(ValueError, match="no module 'head'; it has 0, 1"):
        Squares(network, skip=["head"])
    with pytest.raises(ValueError, match="no layer with a formula"):
        Squares(network, layers=["1"])
    with pytest.raises(ValueError, match="the network has no layer with a formula"):
        Squares(nn.LSTM(3, 3).eval())
    with pytest.raises(ValueError, match="no rows"):
        Squares(network).forward(torch.randn(0, 3))
    with pytest.raises(ValueError, match="autocast to float16"), torch.autocast("cpu", torch.float16):
        Squares(network).forward(torch.randn(2, 3))
    tap = Squares(network).forward(torch.randn(2, 3))
    with pytest.raises(ValueError, match="outputs do not depend on any layer"):
        tap.rows(tap.output.detach().sum())
    with pytest.raises(ValueError, match="Dropout '1' is in train mode, in which it may drop"):
        network[1].train()
        Squares(network).forward(torch.randn(2, 3))


def test_a_pass_is_freed_when_nobody_holds_it():
    squares = Squares(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).eval())
    tap = squares.forward(torch.randn(2, 3))
    seen = weakref.ref(tap.output)
    tap.norms(tap.output.sum())
    gc.disable()
    try:
        del tap
        assert seen() is None
    finally:
        gc.enable()
