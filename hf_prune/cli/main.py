"""`hf-prune`: the command line.

Libraries are imported inside of the commands, so that `--help` needs none of them.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_prune import __version__
from hf_prune.cli.errors import NAME, Group, say, show

if TYPE_CHECKING:
    from hf_prune.cli.io import Data

ESTIMATE_ROWS = 8


app = typer.Typer(
    name=NAME,
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run `hf-prune`. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted."""
    try:
        app(prog_name=NAME)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # one more Ctrl-C ends what is left, without a traceback


def _debug(ctx: typer.Context, value: bool) -> bool:
    if value:
        ctx.meta["debug"] = True
    return value


def _version(value: bool) -> None:
    if value:
        typer.echo(f"{NAME} {__version__}")
        raise typer.Exit


Debug = Annotated[bool, typer.Option("--debug", callback=_debug, help="Show tracebacks.")]
DataArgument = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder of save_to_disk, files or a folder of them, or user/name.")
]
Out = Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Folder, or .parquet, .jsonl, .csv.")]
Split = Annotated[str | None, typer.Option(help="The only split to use.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows at a time.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Let saved scorers run the code that they name: you trust who wrote them.")
]
SafeCsv = Annotated[
    bool, typer.Option("--safe-csv", help="In a .csv, put ' before texts that a spreadsheet would run as formulas.")
]
ScoresDir = Annotated[
    Path | None, typer.Option(help="Folder for the finished shards: run again with it to resume. Else in the cache.")
]


def _examples(*lines: str, about: str = "") -> str:
    """An epilog whose lines stay as they are, which is what a lone backspace says to click."""
    return f"{about}\n\n\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@app.callback(
    epilog=_examples(
        "hf-prune demo",
        "hf-prune embed reviews.parquet --model BAAI/bge-small-en-v1.5 -o embedded",
        "hf-prune score embedded --scorer ssl_proto -o scored",
        "hf-prune filter scored --by ssl_proto --keep 0.7 -o kept.parquet",
    )
)
def _hf_prune(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
    debug: Debug = False,
) -> None:
    """Score, prune and share datasets.

    DATA is a folder that save_to_disk wrote, Parquet, JSON, CSV or Arrow files (or a folder of them), or a name on the
    Hub: user/name, user/name:config, user/name@revision. OUT is a folder (save_to_disk) or a .parquet, .jsonl or .csv
    file.
    """


@app.command(
    epilog=_examples(
        "hf-prune demo",
        "hf-prune demo --output results --seeds 10",
    )
)
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the results.")] = Path(
        "hf-prune-demo"
    ),
    seeds: Annotated[int, typer.Option(min=2, help="Trainings of each arm.")] = 5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier demo.")] = False,
    debug: Debug = False,
) -> None:
    """Score, prune and train on 1,797 real pictures, offline, in about a minute."""
    from hf_prune.cli import demo as story

    show(story.run(output, seeds=seeds, overwrite=overwrite, say=say))


@app.command(
    epilog=_examples(
        "hf-prune embed reviews.jsonl --model BAAI/bge-small-en-v1.5 -o embedded",
        "hf-prune embed user/photos --model facebook/dinov2-small --column image -o e",
    )
)
def embed(
    data: DataArgument,
    output: Out,
    model: Annotated[str, typer.Option(help="Hub name, folder, or package.module:factory.")],
    column: Annotated[list[str] | None, typer.Option(help="Texts or pictures; several for texts.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of the model on the Hub.")] = None,
    preprocess: Annotated[str | None, typer.Option(help="package.module:function, for a factory.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    name: Annotated[str, typer.Option(help="The new column.")] = "embedding",
    normalize: Annotated[bool | None, typer.Option(help="To unit length; else as the model says.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens after which texts are cut.")] = None,
    on_bad: Annotated[str, typer.Option(help="Empty texts, damaged pictures: raise or nan.")] = "raise",
    split: Split = None,
    batch_size: BatchSize = 1000,
    scores_dir: ScoresDir = None,
    safe_csv: SafeCsv = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Add a column of embeddings."""
    from hf_prune.cli.io import check_out, open_data

    out = check_out(output, overwrite, data)
    opened = open_data(data, split)
    from hf_prune.networks.embedder import Embedder

    columns = column or ["text"]
    missing = [c for c in columns if c.split(".")[0] not in opened.main.column_names]
    if missing:
        raise KeyError(f"no column {missing[0]!r} to embed; there are {opened.main.column_names}")
    scorer = Embedder(
        model,
        columns[0] if len(columns) == 1 else columns,
        revision=revision,
        preprocess=preprocess,
        dtype=dtype,
        name=name,
        normalize=normalize,
        max_length=max_length,
        on_bad=on_bad,
    )
    _run(opened, [scorer], out, scores_dir, batch_size, safe_csv)


@app.command(
    epilog=_examples(
        "hf-prune score embedded --scorer ssl_proto --k 100 -o scored",
        "hf-prune score embedded --scorer supervised_proto --label topic -o s.parquet",
        "hf-prune score embedded --scorer ssl_proto --set metric=margin -o scored",
        "hf-prune score new.parquet --scorer saved/ssl_proto -o scored",
        about="`hf-prune scorers` lists the scorers, `hf-prune scorers NAME` the options of one.",
    )
)
def score(
    data: DataArgument,
    output: Out,
    scorer: Annotated[
        list[str],
        typer.Option(help="Name, folder written by scorer.save(), or package.module:Class. Repeatable."),
    ],
    k: Annotated[str | None, typer.Option(help="Prototypes; the root of the rows by default.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of classes.")] = None,
    embedding: Annotated[str | None, typer.Option(help="Column of embeddings.")] = None,
    seed: Annotated[str | None, typer.Option(help="Of whatever is random.")] = None,
    metric: Annotated[str | None, typer.Option(help="cosine, euclidean or margin.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any option of a scorer; SCORER.KEY=VALUE for one of several."),
    ] = None,
    save_scorers: Annotated[Path | None, typer.Option(help="Folder where each fitted scorer is saved.")] = None,
    row_id: Annotated[bool, typer.Option("--row-id", help="Add a column row_id: push and random need one.")] = False,
    split: Split = None,
    batch_size: BatchSize = 1000,
    scores_dir: ScoresDir = None,
    trust_code: TrustCode = False,
    safe_csv: SafeCsv = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Add score columns. High means keep.

    Scorers that learn something are fitted on DATA first.
    """
    from hf_prune.checks import check_inside
    from hf_prune.cli.io import check_out, check_replace, open_data, read_provenance
    from hf_prune.cli.scorers import build, needs_ids
    from hf_prune.data.identity import with_row_id

    out = check_out(output, overwrite, data)
    opened = open_data(data, split)
    say(opened.describe())
    if not len(opened.main):
        raise ValueError(f"{data} has no rows, so there is nothing to score")
    flags = {"k": k, "label": label, "embedding": embedding, "seed": seed, "metric": metric}

    def with_ids(data: Data) -> Data:
        """What scorers wrote is not the row's own: another machine's embedding differs in its last bits."""
        own = [name for name in data.main.column_names if name not in read_provenance(data)]
        say("adding the column row_id")
        return data.with_main(with_row_id(data.main, columns=own))

    if row_id and "row_id" not in opened.main.column_names:
        opened = with_ids(opened)  # before fitting, which draws its sample by them
    made = build(scorer, opened.main, option or (), flags, lambda spec: open_data(spec).main, say, trust_code)
    if needs_ids(made, opened.main.column_names):
        opened = with_ids(opened)
    if save_scorers is not None:
        for one in made:
            check_replace(check_inside(save_scorers, one.name), overwrite, ("scorer.json",))
        for one in made:
            one.save(save_scorers / one.name)
    _run(opened, made, out, scores_dir, batch_size, safe_csv)


def _run(data: Data, scorers: list[Any], out: Path, scores_dir: Path | None, batch_size: int, safe_csv: bool) -> None:
    """Say the cost, score, write, sum up."""
    from hf_prune.cli.io import WRITERS, check_columns, read_provenance, write_out
    from hf_prune.cli.show import cost_line, score_summary
    from hf_prune.columns import sidecar_text
    from hf_prune.run.score import score as score_rows

    ds = data.main
    for one in scorers:
        one.check_clash(ds.column_names)
    if out.suffix in WRITERS:
        features = ds.features
        for one in scorers:
            features = one.features(features)
        check_columns(features, out)
        if data.others is not None:
            raise ValueError(f"{out} is one file, the data have splits {list(data.others)}; choose one with --split")
    say(cost_line(ds, scorers, ESTIMATE_ROWS))
    scored = score_rows(ds, *scorers, output_dir=scores_dir, batch_size=batch_size)
    described = {**read_provenance(data), **{s.name: s.describe() for s in scorers}}
    write_out(data.with_main(scored), out, sidecar_text(described.values(), rows=len(scored)), safe_csv)
    show(score_summary(scored, [s for s in scorers if s.columns()[s.name].startswith("float")]))
    show(f"{len(scored):,} rows written to {out}")


@app.command(
    "filter",
    epilog=_examples(
        "hf-prune filter scored --by ssl_proto --keep 0.7 -o kept",
        "hf-prune filter scored --by ssl_proto --keep 0.7 --group-by label -o kept",
        "hf-prune filter scored --by ssl_proto --rows 1000 --report r.html -o kept",
        "hf-prune filter scored --by quality --budget 1e9 --cost n_tokens -o kept",
    ),
)
def filter_(
    data: DataArgument,
    output: Out,
    by: Annotated[str, typer.Option(help="The score column.")],
    keep: Annotated[float | None, typer.Option(help="Fraction of the rows to keep.")] = None,
    rows: Annotated[int | None, typer.Option(help="Number of rows to keep.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Keep scores from here on.")] = None,
    budget: Annotated[float | None, typer.Option(help="Keep rows until their summed cost is reached.")] = None,
    cost: Annotated[str | None, typer.Option(help="Column of costs, for --budget.")] = None,
    prefer: Annotated[str, typer.Option(help="high, low, middle or random.")] = "high",
    group_by: Annotated[list[str] | None, typer.Option(help="Columns whose groups are protected.")] = None,
    group_floor: Annotated[float | None, typer.Option(help="1: prune groups alike; 0: protect none.")] = None,
    one_per: Annotated[str | None, typer.Option(help="Column of cluster ids: keep the best row of each.")] = None,
    offset: Annotated[float, typer.Option(help="Fraction of best rows to pass over first.")] = 0.0,
    nulls: Annotated[str, typer.Option(help="Rows without a score: raise, keep or drop.")] = "raise",
    seed: Annotated[int, typer.Option(help="Decides ties.")] = 0,
    row_id: Annotated[str, typer.Option(help="Column of row ids, for ties.")] = "row_id",
    report: Annotated[Path | None, typer.Option(metavar="HTML", help="Also write a report with examples.")] = None,
    split: Split = None,
    safe_csv: SafeCsv = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Keep the rows that a score column prefers.

    Exactly one of --keep, --rows, --threshold and --budget says how many.
    """
    import numpy as np

    from hf_prune.cli.io import (
        check_columns,
        check_out,
        check_report,
        open_data,
        read_provenance,
        replacing,
        write_out,
    )
    from hf_prune.cli.show import filter_summary
    from hf_prune.columns import sidecar_text
    from hf_prune.data.layout import take_rows
    from hf_prune.prune.filter import decide

    out = check_out(output, overwrite, data)
    if report is not None:
        report = check_report(report, overwrite)
    opened = open_data(data, split)
    ds, known = opened.main, read_provenance(opened)
    check_columns(ds.features, out)
    kept = decide(
        ds,
        known.get(by, by),
        keep=keep,
        rows=rows,
        threshold=_whole(threshold),
        budget=_whole(budget),
        cost=cost,
        prefer=prefer,  # type: ignore[arg-type]
        seed=seed,
        group_by=group_by or None,
        group_floor=group_floor,
        one_per=one_per,
        nulls=nulls,  # type: ignore[arg-type]
        row_id=row_id,
        offset=offset,
    )
    if not kept.any():
        raise ValueError(f"no row of {by!r} passes; nothing was written")
    left = opened.with_main(take_rows(ds, np.flatnonzero(kept), "indices"))
    write_out(left, out, sidecar_text(known.values(), rows=len(left.main)) if known else None, safe_csv)
    show(filter_summary(ds, kept, by, group_by or []))
    show(f"{len(left.main):,} rows written to {out}")
    if report is not None:
        from hf_prune.share.report import report as render

        words = f"{len(left.main):,} of {len(ds):,} rows, prefer {prefer}" + (f", offset {offset}" if offset else "")
        text = render(ds, [known.get(by, by)], kept={words: kept}, title=f"Pruned by {by}")
        with replacing(report) as temporary:
            temporary.write_text(text, encoding="utf-8")
        show(f"report written to {report}")


def _whole(number: float | None) -> float | int | None:
    """An integer where it is one: integer columns are compared as integers."""
    return int(number) if number is not None and float(number).is_integer() else number


@app.command(
    epilog=_examples(
        "hf-prune push scored user/reviews",
        "hf-prune push scored.parquet user/reviews --scorers scores --private",
        "hf-prune push scored user/reviews-scores --what scores --source user/reviews",
    )
)
def push(
    data: DataArgument,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/name on the Hub; made if it is missing.")],
    scorers: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of score columns (--scores-dir) or of a saved scorer. Repeatable."),
    ] = None,
    columns: Annotated[list[str] | None, typer.Option(help="More score columns, of unknown origin.")] = None,
    what: Annotated[str, typer.Option(help="both, scores or data.")] = "both",
    row_id: Annotated[str, typer.Option(help="Column of row ids.")] = "row_id",
    config_name: Annotated[str, typer.Option(help="Config of the scores.")] = "scores",
    label: Annotated[str | None, typer.Option(help="Column for the card's class balance.")] = None,
    keep: Annotated[float, typer.Option(help="Fraction for the card's class balance.")] = 0.7,
    license: Annotated[str | None, typer.Option(help="For the card, if it has none.")] = None,
    source: Annotated[str | None, typer.Option(help="user/name of the data, with --what scores.")] = None,
    private: Annotated[bool | None, typer.Option(help="For a repo that is made here.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    split: Split = None,
    trust_code: TrustCode = False,
    debug: Debug = False,
) -> None:
    """Push data, scores, their provenance and a card to the Hub. Log in with `hf auth login` first.

    Without --scorers, the provenance that `hf-prune score` put into the folder DATA is used.
    """
    from hf_prune.cli.io import open_data, read_provenance
    from hf_prune.scorer import Scorer
    from hf_prune.share.push import push_scored

    opened = open_data(data, split)
    described = [Scorer.load(f, trust_code=trust_code) if (f / "scorer.json").is_file() else f for f in scorers or ()]
    described = described or list(read_provenance(opened).values())
    if row_id == "row_id" and row_id not in opened.main.column_names:
        raise ValueError(
            f"{data} has no column row_id, which joins scores to data; make one with hf-prune score --row-id, "
            "or name yours with --row-id"
        )
    say(f"pushing {opened.describe()} to {repo}")
    done = push_scored(
        opened.whole,
        repo,
        scorers=described,
        columns=columns or None,
        what=what,  # type: ignore[arg-type]
        row_id=row_id,
        config_name=config_name,
        label=label,
        keep=keep,
        license=license,
        source=source,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
    )
    show(f"{done.url} ({'commit ' + done.oid[:12] if done.changed else 'nothing to change'})")


@app.command(
    epilog=_examples(
        "hf-prune scorers",
        "hf-prune scorers dsir",
    )
)
def scorers(
    name: Annotated[str | None, typer.Argument(help="Show this one, with its options.")] = None,
    debug: Debug = False,
) -> None:
    """List the scorers by the question they answer, or the options of one."""
    from hf_prune.cli import catalog

    show(catalog.listing() if name is None else catalog.details(name))


@app.command(
    epilog=_examples(
        "hf-prune doctor",
        "hf-prune doctor --json",
    )
)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    debug: Debug = False,
) -> None:
    """Say what is installed, what is broken, and how to mend it; exit code 1 if something is broken."""
    from hf_prune.cli.doctor import main as examine

    raise typer.Exit(examine(as_json, show))


if __name__ == "__main__":
    main()
