"""Per-example gradients the slow way: one backward pass an example; and networks to try."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)


def logits_of(output):
    return getattr(output, "logits", output)


def per_example(network, inputs, back):
    """[{parameter name: gradient}] for each example; `back` is the gradient at the logits."""
    found = []
    for n in range(len(back)):
        one = {key: x[n : n + 1] for key, x in inputs.items()}
        out = network(**one) if "x" not in one else network(one["x"])
        grads = torch.autograd.grad(logits_of(out), list(network.parameters()), back[n : n + 1], allow_unused=True)
        found.append({k: g for (k, _), g in zip(network.named_parameters(), grads, strict=True) if g is not None})
    return found


def rows_of(squares, grads):
    """(b, D): what `squares.rows` should be, from gradients of each example."""
    rows = torch.zeros(len(grads), squares.size, dtype=torch.float64)
    shared = {id(p): name for name, p in squares.network.named_parameters()}
    for block in squares.blocks:
        layer, _, own = block.name.rpartition(".")
        module = squares.network.get_submodule(layer)
        name = shared[id(getattr(module, own))]
        for n, found in enumerate(grads):
            if name in found:
                g = found[name].double()
                g = g.T if type(module).__name__ == "Conv1D" and g.ndim == 2 else g
                rows[n, block.start : block.stop] = g.square().flatten(1).sum(1) if g.ndim > 1 else g.flatten().square()
    return rows


class Residual(nn.Module):
    """A block of ResNet with operations in place, a strided and a grouped, dilated convolution."""

    def __init__(self, into, out):
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 2, dilation=2, groups=2)
        self.bn2 = nn.BatchNorm2d(out)
        self.down = nn.Conv2d(into, out, 1, 2, bias=False)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return self.relu(out)


def resnet():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(True), Residual(4, 8), Residual(8, 32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1)
    return network.double().eval(), {"x": torch.randn(3, 3, 9, 8).double()}


def tokens(pad, b=3, t=7):
    ids = torch.randint(1, 23, (b, t))
    ids[0, :3] = 5  # repeated within an example
    mask = torch.ones_like(ids)
    for n, lengths in enumerate([t, t - 2, t - 4][:b]):
        if pad == "right":
            mask[n, lengths:] = 0
        elif pad == "left":
            mask[n, : t - lengths] = 0
    return ids * mask, mask


def gpt2(pad="right", tied=True):
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=23, n_embd=8, n_layer=2, n_head=2, n_positions=12, tie_word_embeddings=tied,
                        bos_token_id=1, eos_token_id=1)  # fmt: skip
    ids, mask = tokens(pad)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if pad == "left":
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return GPT2LMHeadModel(config).double().eval(), inputs


def llama(pad="right", tied=False):
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=12,
        tie_word_embeddings=tied,
    )
    network = LlamaForCausalLM(config).double().eval()
    for name, p in network.named_parameters():
        if "norm" in name:
            nn.init.normal_(p, 1, 0.3)
    ids, mask = tokens(pad)
    return network, {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def bert(pad="right"):
    torch.manual_seed(3)
    config = BertConfig(vocab_size=23, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
                        max_position_embeddings=12, num_labels=3)  # fmt: skip
    ids, mask = tokens(pad)
    return BertForSequenceClassification(config).double().eval(), {"input_ids": ids, "attention_mask": mask}
