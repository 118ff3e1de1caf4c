"""Prune a text classification set by what a Trainer run says of its rows.

    python examples/prune_by_training_run.py --data train.parquet --model folder --flip 0.1 --output runs/texts

`--model` is a folder or a name on the Hub of anything that `AutoModelForSequenceClassification` reads; a classifier's
head is put on it and trained. `RecordingTrainer` is the stock Trainer with a log, and the log gives every score; the
checkpoint of an early epoch gives EL2N on clean passes. With `--flip` some labels are made wrong first, and a table
says which scores find them; the rows are pruned by AUM in any case.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from datasets import load_dataset
from label_noise import print_table, spoil
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, set_seed

import hf_prune as hp


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="name on the Hub, or a Parquet file")
    parser.add_argument("--split", default="train")
    parser.add_argument("--model", required=True, help="name on the Hub, or a folder")
    parser.add_argument("--column", default="text")
    parser.add_argument("--label", default="label", help="column of classes (ClassLabel)")
    parser.add_argument("--limit", type=int, help="only so many rows")
    parser.add_argument("--flip", type=float, default=0.0, help="share of labels to spoil")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--early", type=int, default=1, help="epochs after which EL2N looks at the network")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--max-length", type=int, help="tokens after which texts are cut; the model's own limit")
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.data.endswith(".parquet"):
        ds = load_dataset("parquet", data_files=args.data, split="train")
    else:
        ds = load_dataset(args.data, split=args.split)
    ds = hp.with_row_id(ds.select(range(min(args.limit or len(ds), len(ds)))))
    classes = ds.features[args.label].num_classes
    # the Trainer reads `label` and `labels`: the true one must not lie beside the given one under such a name
    ds = spoil(ds, args.label, args.flip).rename_columns({args.label: "true"}).rename_columns({"given": "label"})

    set_seed(0)  # the head's weights are drawn here
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    network = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=classes)
    trainer = hp.RecordingTrainer(
        network,
        TrainingArguments(
            output_dir=str(args.output / "run"),
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant",  # a rate that drops lets the network memorise wrong labels
            save_strategy="epoch",
            save_only_model=True,
            report_to="none",
        ),
        train_dataset=ds.map(
            lambda batch: tokenizer(batch[args.column], truncation=True, max_length=args.max_length), batched=True
        ),
        processing_class=tokenizer,
        log=args.output / "log",
    )
    trainer.train()
    log = trainer.log_folder
    early = args.output / "run" / f"checkpoint-{min(args.early, args.epochs) * math.ceil(len(ds) / args.batch_size)}"

    scorers: list[Any] = [
        hp.AUM.from_log(log),
        hp.Cartography.from_log(log),
        hp.Forgetting.from_log(log, tie_break="first_learned"),
        hp.EL2N.from_log(log),
        hp.EL2N(early, label="label", column=args.column, max_length=args.max_length),
        hp.Random(seed=0),
    ]
    ds = hp.score(ds, *scorers, output_dir=args.output / "scores")
    if args.flip:
        print_table(ds, ["aum", "confidence", "forgetting", "el2n_train", "el2n", "variability", "random_0"], args.keep)

    kept = hp.filter_by_score(ds, "aum", keep=args.keep)
    kept.save_to_disk(str(args.output / "kept"))
    hp.save_scored(ds, args.output / "card", scorers=scorers, label="label", keep=args.keep)
    print(
        f"kept {len(kept)} of {len(ds)} rows by AUM in {args.output / 'kept'}; scores and card: {args.output / 'card'}"
    )


if __name__ == "__main__":
    main()
