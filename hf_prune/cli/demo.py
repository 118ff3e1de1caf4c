"""`hf-prune demo`: score, prune and train on real pictures, offline; says what comes out, whatever it is.

The data are the 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn. A small network trained on the
training rows gives the embedding; scores are made, the rows pruned, and a network of the same kind is trained from
scratch on what was kept, on as many rows drawn at random, and on all.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_prune.numerics.student import interval

if TYPE_CHECKING:
    import torch

TEST_ROWS = 597
BATCH = 32
KEEP, FLOOR = 0.7, 0.5
REPORT = "report.html"


@dataclass(frozen=True)
class Arm:
    """One way to choose the training rows.

    Args:
        name: as the tables show it.
        rows: how many it trains on.
        accuracies: (s,) on the test rows, one a seed.
    """

    name: str
    rows: int
    accuracies: np.ndarray


def run(
    output: str | Path,
    *,
    seeds: int = 5,
    steps: int = 300,
    rows: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> str:
    """Run the demo and write its folder: `report.html`, `report.md`, `scored/`, `kept/`, `scores/`, `accuracy.json`.

    Args:
        output: a folder; made whole or not at all.
        seeds: trainings of each arm.
        steps: of each training, of 32 rows each, whatever the number of rows: less data is not less training.
        rows: pictures to use; all by default.
        overwrite: replace the folder of an earlier demo.
        say: told what is going on.

    Returns:
        The summary in Markdown.

    Raises:
        ModuleNotFoundError: scikit-learn is missing; the message has the command.
        FileExistsError: the folder exists.
        ValueError: too few seeds or rows.

    >>> run("demo", seeds=1)
    Traceback (most recent call last):
    ...
    ValueError: seeds=1: an interval needs two trainings or more
    """
    if seeds < 2:
        raise ValueError(f"seeds={seeds}: an interval needs two trainings or more")
    if rows is not None and rows < 100:
        raise ValueError(f"rows={rows}: the demo needs 100 pictures or more")
    from hf_prune.cli.io import check_replace, replacing

    out = Path(output).expanduser()
    check_replace(out, overwrite, (REPORT,))
    start = time.perf_counter()
    train, test = digits(rows)
    with _one_thread(), replacing(out) as folder:
        folder.mkdir()
        summary = _story(train, test, out, folder, seeds, steps, say)
    say(f"done in {time.perf_counter() - start:.0f} s; open {out / REPORT}")
    return summary


def _story(train: Any, test: Any, out: Path, folder: Path, seeds: int, steps: int, say: Callable[[str], None]) -> str:
    from hf_prune.columns import sidecar_text
    from hf_prune.prune.filter import filter_by_score
    from hf_prune.share.report import Table, report

    say(f"{len(train):,} pictures to learn from, {len(test):,} to test on")
    scored, scorers = score_digits(train, folder / "scores", steps)
    names = [s.name for s in scorers]
    masks = {
        f"{name}, {prefer}": kept_rows(scored, name, prefer=prefer, seed=0)
        for name in names
        for prefer in ("high", "low")
    }
    say(f"{2 + len(masks)} ways to choose rows, {seeds} trainings each")
    arms = compare(scored, test, masks, seeds, steps, say)
    sidecar = sidecar_text([s.describe() for s in scorers], rows=len(scored))
    kept = filter_by_score(scored, names[0], keep=KEEP, group_by="label", group_floor=FLOOR)
    for name, ds in (("scored", scored), ("kept", kept)):
        _quietly(partial(ds.save_to_disk, str(folder / name)))
        (folder / name / "score_columns.json").write_text(sidecar, encoding="utf-8")
    accuracies = {arm.name: {"rows": arm.rows, "accuracy": arm.accuracies.tolist()} for arm in arms}
    (folder / "accuracy.json").write_text(json.dumps(accuracies, indent=2), encoding="utf-8")
    head, body = accuracy_table(arms)
    notes = [verdict(arms), *caveats(len(train), len(test), seeds, steps)]
    go_on = commands(out, names)
    caption = f"Accuracy on {len(test):,} test pictures, in %, with 95 % intervals over {seeds} trainings"
    page = report(
        scored,
        [s.describe() for s in scorers],
        kept={name: masks[f"{name}, high"] for name in names},
        label="label",
        show="image",
        examples=12,
        title="hf_prune demo: handwritten digits",
        notes=notes,
        tables=[Table(caption, head, body)],
        commands=go_on,
    )
    (folder / REPORT).write_text(page, encoding="utf-8")
    text = markdown(head, body, notes, go_on)
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


# -- data ---------------------------------------------------------------


def digits(rows: int | None = None) -> tuple[Any, Any]:
    """Training and test rows: `image` (PNG), `label` (ClassLabel) and `row_id`; a seeded third is for the test.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the demo takes its pictures from scikit-learn; pip install 'hf_prune[demo]'", name=error.name
        ) from error
    import PIL.Image
    from datasets import ClassLabel, Dataset, Features, Image

    from hf_prune.data.identity import with_row_id

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))[:rows]
    pixels = np.rint(found.images[order] * (255 / 16)).astype(np.uint8)

    def png(picture: np.ndarray) -> dict[str, Any]:
        stream = io.BytesIO()
        PIL.Image.fromarray(picture).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    table = {"image": [png(p) for p in pixels], "label": found.target[order].tolist()}
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    ds = with_row_id(Dataset.from_dict(table, features=features))
    tested = min(TEST_ROWS, len(ds) // 3)
    return ds.select(range(tested, len(ds))), ds.select(range(tested))


def pixels_of(pictures: list[Any]) -> torch.Tensor:
    """Preprocessing: n pictures to (n, 1, 8, 8) floats from 0 to 1."""
    import torch

    small = [np.asarray(p.convert("L").resize((8, 8)), np.float32) for p in pictures]
    return torch.from_numpy(np.stack(small)[:, None] / 255)


def tensors(ds: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, 1, 8, 8) and labels (n,)."""
    import torch

    return pixels_of(ds["image"][:]), torch.tensor(ds["label"][:])


# -- networks ---------------------------------------------------------------


def network(width: int = 32) -> torch.nn.Sequential:
    """One convolution and two linear layers: 8 x 8 pictures to `width` features to 10 classes."""
    from torch import nn

    body = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, width))
    return nn.Sequential(body, nn.ReLU(), nn.Linear(width, 10))


def train_network(x: torch.Tensor, y: torch.Tensor, steps: int, seed: int) -> torch.nn.Sequential:
    """Train from scratch on (n, 1, 8, 8) pictures for so many steps; a pure function of the arguments."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        batches = torch.cat([torch.randperm(len(x)) for _ in range(-(-steps * BATCH // len(x)))])
        for step in range(steps):
            rows = batches[step * BATCH : (step + 1) * BATCH]
            loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()


def accuracy(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of (n,) labels that the network gets right."""
    import torch

    with torch.inference_mode():
        return float((net(x).argmax(1) == y).float().mean())


# -- scores ---------------------------------------------------------------


def score_digits(train: Any, folder: Path, steps: int) -> tuple[Any, list[Any]]:
    """The training rows with an embedding and two scores, and the scorers."""
    from hf_prune.networks.embedder import Embedder
    from hf_prune.run.score import score
    from hf_prune.scorers.ssl_prototypes import SSLPrototypes
    from hf_prune.scorers.supervised_prototypes import SupervisedPrototypes

    net = train_network(*tensors(train), max(steps // 2, 1), seed=100)[0].eval()
    embedder = Embedder(net, column="image", kind="image", preprocess="hf_prune.cli.demo:pixels_of", micro_batch=256)
    embedded = _quietly(lambda: score(train, embedder, output_dir=folder / "embedding"))
    scorers = [
        SSLPrototypes.fit(embedded, k=min(30, len(train) // 4), min_cluster_size=2),
        SupervisedPrototypes.fit(embedded),
    ]
    return _quietly(lambda: score(embedded, *scorers, output_dir=folder / "prototypes")), scorers


def kept_rows(ds: Any, column: str, *, prefer: Literal["high", "low", "random"], seed: int) -> np.ndarray:
    """Which rows stay, (n,) bools: 70 %, and of every class at least half of its share."""
    from hf_prune.data.arrow import floats_column
    from hf_prune.prune.filter import keep_mask

    return keep_mask(
        floats_column(ds, column),
        keep=KEEP,
        prefer=prefer,
        groups=ds["label"][:],
        group_floor=FLOOR,
        ids=ds["row_id"][:],
        seed=seed,
    )


def _same(mask: np.ndarray, seed: int) -> np.ndarray:
    return mask


def compare(
    train: Any,
    test: Any,
    masks: Mapping[str, np.ndarray],
    seeds: int,
    steps: int,
    say: Callable[[str], None] = lambda text: None,
) -> list[Arm]:
    """Train on all rows, on as many random ones as are kept, and on each mask; random rows are drawn anew per seed."""
    x, y = tensors(train)
    held_x, held_y = tensors(test)
    column = next(iter(masks)).split(",")[0]
    chosen: dict[str, Callable[[int], np.ndarray]] = {
        "all rows": lambda seed: np.ones(len(y), bool),
        "random": lambda seed: kept_rows(train, column, prefer="random", seed=seed),
        **{name: partial(_same, mask) for name, mask in masks.items()},
    }
    arms = []
    for name, choose in chosen.items():
        found = []
        for seed in range(seeds):
            rows = np.flatnonzero(choose(seed))
            found.append(accuracy(train_network(x[rows], y[rows], steps, seed), held_x, held_y))
        arms.append(Arm(name, len(rows), np.array(found)))
        say(f"{name}: {100 * arms[-1].accuracies.mean():.1f} %")
    return arms


# -- what came out ---------------------------------------------------------------


def accuracy_table(arms: Sequence[Arm]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: accuracy of each arm, and its difference to random, paired by seed."""
    random = next(arm for arm in arms if arm.name == "random")
    rows = []
    for arm in arms:
        mean, half = interval(100 * arm.accuracies)
        gap, spread = interval(100 * (arm.accuracies - random.accuracies), together=len(arms) - 1)
        versus = "" if arm is random else f"{gap:+.2f} ± {spread:.2f}"
        rows.append([arm.name, f"{arm.rows:,}", f"{mean:.2f} ± {half:.2f}", versus])
    return ["trained on", "rows", "accuracy", "minus random"], rows


def verdict(arms: Sequence[Arm]) -> str:
    """One sentence for each outcome, read off the intervals."""
    random = next(arm for arm in arms if arm.name == "random")
    better: list[str] = []
    worse: list[str] = []
    same: list[str] = []
    for arm in arms:
        if arm.name in ("random", "all rows"):
            continue
        gap, spread = interval(arm.accuracies - random.accuracies, together=len(arms) - 1)
        (better if gap - spread > 0 else worse if gap + spread < 0 else same).append(arm.name)
    text = []
    for names, what in (
        (better, "did better than random rows"),
        (worse, "did worse than random rows"),
        (same, "cannot be told from random rows"),
    ):
        if names:
            text.append(f"{'; '.join(names)}: {what}.")
    everything = next(arm for arm in arms if arm.name == "all rows")
    gap, spread = interval(100 * (everything.accuracies - random.accuracies), together=len(arms) - 1)
    return " ".join([*text, f"All rows minus random rows: {gap:+.2f} ± {spread:.2f} points."])


def caveats(train: int, test: int, seeds: int, steps: int) -> list[str]:
    """What the numbers do not say."""
    return [
        f"{KEEP:.0%} of {train:,} rows are kept, each class at least half of its share. Every training has {steps} "
        f"steps of {BATCH} rows, so that fewer rows are not less training. The embedding is a network trained on the "
        "labels of the training rows, once; the scores are made from it, once.",
        f"The intervals are over {seeds} trainings (and, for random, draws of rows): they do not contain the chance "
        f"in the {test:,} test pictures, nor in the one embedding. Differences to random are paired by seed, and their "
        "intervals are wide enough to hold all together with 95 %.",
        "Sorscher et al. (2022) expect that hard rows are worth keeping where data are plenty, and easy rows where "
        "they are few. This is one small dataset: it shows how to find out, not what you will find.",
    ]


def commands(out: Path, names: Sequence[str]) -> list[str]:
    """Commands to go on with, on the demo's own results."""
    import shlex

    scored, kept = shlex.quote(str(out / "scored")), shlex.quote(str(out / "half"))
    return [
        f"hf-prune filter {scored} --by {names[0]} --keep 0.5 --group-by label -o {kept}",
        f"hf-prune filter {scored} --by {names[-1]} --rows 300 --prefer low -o easy.parquet --report easy.html",
        f"hf-prune score {scored} --scorer random --seed 7 -o {shlex.quote(str(out / 'more'))}",
        f"hf-prune push {scored} user/digits --label label",
        "hf-prune doctor",
    ]


def markdown(head: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str], go_on: Sequence[str]) -> str:
    """The summary for the console and `report.md`; columns are padded, so that it reads as plain text."""
    cells = [list(head), *map(list, body)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(["# hf_prune demo", "", *lines, "", "\n\n".join(notes), "", "```bash", *go_on, "```"]) + "\n"


class _one_thread:  # noqa: N801
    """One thread for torch: with networks this small, a second one on a busy machine is eight times slower."""

    def __enter__(self) -> None:
        import torch

        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self.before)


def _quietly(work: Callable[[], Any]) -> Any:
    """Without the progress bars of steps that take a second."""
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return work()
    finally:
        if not shown:
            datasets.enable_progress_bars()
