"""`Perplexity` against the loop people copy (that of the `evaluate` metric), on texts of uneven length.

    python tests/benchmarks/bench_perplexity.py --small
    python tests/benchmarks/bench_perplexity.py --model FOLDER --data FOLDER/lm_domains/validation.parquet --rows 256

The loop: batches of 16 in the order of the rows, padded to the longest, an attention mask, BOS in front, logits of the
whole batch, cross-entropy of each token. Both sides see the same texts, cut at the same token, in the same process and
in turns. Outputs are compared to 5e-4: with 49 152 words the metric's cross-entropy is 1.5e-4 from float64, ours 1e-6.
Ratios are of medians, of wall time and of processor time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_prune as hp

BATCH = 16


def made_model(folder: str) -> str:
    """A GPT-2 of 4 layers over 8 192 words, random: its speed is that of a trained one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {f"w{i}": i for i in range(8190)} | {"[BOS]": 8190, "[UNK]": 8191}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="[BOS]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=8192, n_embd=192, n_layer=4, n_head=4, n_positions=256, bos_token_id=8190, eos_token_id=8190
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def texts(rows: int, data: str | None) -> list[str]:
    if data:
        import pyarrow.parquet as pq

        found = pq.read_table(data, columns=["text"])["text"].to_pylist()
        order = np.random.default_rng(0).permutation(len(found))
        return [found[int(i)] for i in np.resize(order, rows)]
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(4.0, 0.9, rows), 4, 1000).astype(int)
    return [" ".join(f"w{i}" for i in rng.integers(0, 8190, size)) for size in sizes]


def loop(network: Any, tokenizer: Any, rows: list[str], limit: int, flat: bool) -> np.ndarray:
    """As the metric does it, or, faster, with the cross-entropy on a matrix of tokens by words."""
    found = []
    bos = tokenizer.bos_token_id
    for start in range(0, len(rows), BATCH):
        cut = [r[:limit] for r in tokenizer(rows[start : start + BATCH], add_special_tokens=False)["input_ids"]]
        ids = [r if r[:1] == [bos] else [bos, *r] for r in cut]
        width = max(map(len, ids))
        tokens = torch.tensor([i + [bos] * (width - len(i)) for i in ids])
        mask = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i in ids])
        with torch.no_grad():
            logits = network(tokens, attention_mask=mask).logits
            shifted, labels, counted = logits[:, :-1].float(), tokens[:, 1:], mask[:, 1:]
            if flat:
                loss = torch.nn.functional.cross_entropy(shifted.flatten(0, 1), labels.flatten(), reduction="none")
                loss = loss.view(labels.shape)
            else:
                loss = torch.nn.functional.cross_entropy(shifted.transpose(1, 2), labels, reduction="none")
            found.append(-(loss * counted).sum(1) / counted.sum(1))
    return torch.cat(found).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--data", help="a Parquet file with a column `text`")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--tokens", type=int, default=255, help="of each text that are scored")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or made_model(folder)
        rows = texts(args.rows or (64 if args.small else 256), args.data)
        network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, args.dtype)).eval()
        tokenizer = AutoTokenizer.from_pretrained(model)
        scorer = hp.Perplexity(model, max_tokens=args.tokens, dtype=args.dtype)

        def ours() -> np.ndarray:
            return np.asarray(scorer({"text": rows})["log_likelihood"])

        runs: dict[str, Callable[[], np.ndarray]] = {
            "ours": ours,
            "the metric's loop": lambda: loop(network, tokenizer, rows, args.tokens, flat=False),
            "the loop, cross-entropy flattened": lambda: loop(network, tokenizer, rows, args.tokens, flat=True),
        }
        outputs = {name: run() for name, run in runs.items()}
        worst = max(float(np.abs(outputs["ours"] - out).max()) for out in outputs.values())
        assert worst < (5e-4 if args.dtype == "float32" else 0.2), worst
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                start = time.perf_counter(), time.process_time()
                run()
                took[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
        wall, cpu = ({name: statistics.median(t[i] for t in times) for name, times in took.items()} for i in (0, 1))
        print(
            f"{len(rows)} texts, at most {args.tokens} tokens each, {args.dtype}, {args.threads} threads; largest "
            f"difference {worst:.1e}"
        )
        for peer in list(runs)[1:]:
            print(
                f"  {wall[peer] / wall['ours']:.2f} times as fast as {peer} by wall time, "
                f"{cpu[peer] / cpu['ours']:.2f} by processor time ({cpu['ours']:.2f} s and {cpu[peer]:.2f} s)"
            )


if __name__ == "__main__":
    main()
