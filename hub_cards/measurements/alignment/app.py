"""The Space: texts in two boxes, their alignment beside them.

The variable PROBE names the probe, a Hub name or a folder; users of the Space cannot choose it, for it is loaded.
"""

import os
from pathlib import Path

import evaluate
import gradio as gr

HERE = Path(__file__).resolve().parent
PROBE = os.environ.get("PROBE", "openai-community/gpt2")
module = evaluate.load(str(HERE / "alignment.py"), module_type="measurement")


def compute(source: str, target: str) -> dict[str, float]:
    """Alignment of the source's lines to the target's, one text each."""
    both = [[line.strip() for line in texts.splitlines() if line.strip()] for texts in (source, target)]
    if not all(both):
        raise gr.Error("there are no texts in one of the boxes; write one on each line")
    if len(both[0]) != len(both[1]):
        raise gr.Error(f"{len(both[0])} texts in the source, {len(both[1])} in the target; give as many of both")
    try:
        return module.compute(predictions=both[0], references=both[1], probe=PROBE)
    except Exception as error:  # what the user can mend, in the words of the library
        raise gr.Error(str(error)) from error


interface = gr.Interface(
    compute,
    [
        gr.Textbox(label=f"{name}: one text a line, sixteen or more (sixteen batches share no row)", lines=12)
        for name in ("Source", "Target, with as many texts")
    ],
    gr.JSON(label="Alignment"),
    title="Task2Vec Alignment",
    description=f"{module.description} Probe: {Path(PROBE).name}.",
    article=(HERE / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
    flagging_mode="never",
    api_name="compute",
)

if __name__ == "__main__":
    interface.launch()
