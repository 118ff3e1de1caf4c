"""The Space: texts in a box, their diversity coefficient beside them.

The variable PROBE names the probe, a Hub name or a folder; users of the Space cannot choose it, for it is loaded.
"""

import os
from pathlib import Path

import evaluate
import gradio as gr

HERE = Path(__file__).resolve().parent
PROBE = os.environ.get("PROBE", "openai-community/gpt2")
module = evaluate.load(str(HERE / "diversity.py"), module_type="measurement")


def compute(texts: str) -> dict[str, float]:
    """Diversity of the lines, one text each."""
    data = [line.strip() for line in texts.splitlines() if line.strip()]
    if not data:
        raise gr.Error("there are no texts; write one on each line")
    try:
        return module.compute(data=data, probe=PROBE)
    except Exception as error:  # what the user can mend, in the words of the library
        raise gr.Error(str(error)) from error


interface = gr.Interface(
    compute,
    gr.Textbox(label="Texts: one a line, sixteen or more (sixteen batches share no row)", lines=12),
    gr.JSON(label="Diversity"),
    title="Task2Vec Diversity",
    description=f"{module.description} Probe: {Path(PROBE).name}.",
    article=(HERE / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
    flagging_mode="never",
    api_name="compute",
)

if __name__ == "__main__":
    interface.launch()
