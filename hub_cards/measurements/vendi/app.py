"""The Space: rows in a box, the Vendi Score beside them. Runs offline too: `python app.py`."""

import json
from pathlib import Path

import evaluate
import gradio as gr

HERE = Path(__file__).resolve().parent
module = evaluate.load(str(HERE / "vendi.py"), module_type="measurement")


def compute(rows: str, q: float = 1.0) -> dict[str, float]:
    """Vendi Score of the lines: texts, or JSON lists of numbers."""
    lines = [line.strip() for line in rows.splitlines() if line.strip()]
    if not lines:
        raise gr.Error("there are no rows; write one on each line")
    try:
        data = [json.loads(line) for line in lines] if all(line.startswith("[") for line in lines) else lines
        return module.compute(data=data, q=q)
    except Exception as error:  # what the user can mend, in the words of the library
        raise gr.Error(str(error)) from error


interface = gr.Interface(
    compute,
    [
        gr.Textbox(label="Rows: one text a line, or one JSON list of numbers a line", lines=8),
        gr.Number(1, label="q: order of the entropy", minimum=0),
    ],
    gr.JSON(label="Vendi Score"),
    title="Vendi Score",
    description=module.description,
    article=(HERE / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
    examples=[["[1, 0]\n[1, 1]\n[0, 2]\n[3, 3]", 1], ["See Spot run now.\nJane sees Spot run now.", 1]],
    cache_examples=False,
    flagging_mode="never",
    api_name="compute",
)

if __name__ == "__main__":
    interface.launch()
