"""The dashboard: follow a training while it runs, compare epochs, read a persona study, see what runs on pods.

    uv run streamlit run mi_dashboard.py
    uv run streamlit run mi_dashboard.py -- --results-dir results/separable --outputs outputs

Reads what the scripts write and makes nothing but the training that its start panel launches. It listens on this
machine alone (.streamlit/config.toml).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import streamlit as st

ROOT = Path(__file__).parent
READING_SECONDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="mi_dashboard.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--results-dir", type=Path, default=ROOT / "results", help="artefacts of the study")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs", help="folders of trained judges")
    st.set_page_config(page_title="Personas and judges from inside", layout="wide")
    try:
        given = parser.parse_args(sys.argv[1:])
    except SystemExit:
        st.error(f"Unknown options: {' '.join(sys.argv[1:])}. There are --results-dir and --outputs, after a lone --.")
        st.stop()
    outputs, results = given.outputs.absolute(), given.results_dir.absolute()

    from src.dashboard.charts import PAGE_STYLE  # what is imported from here on, the browser does not wait for

    st.html(f"<style>{PAGE_STYLE}</style>")

    def training() -> None:  # each page loads what it needs itself: the first view waits for no other's libraries
        from src.dashboard.training_visualizations import show_training

        show_training(outputs, results)

    def persona_study() -> None:
        from src.dashboard.persona_study import show_persona_study

        show_persona_study(results)

    def pods() -> None:
        from src.dashboard.pods import show_pods

        show_pods(results / "runs")

    pages = [  # without icons: a browser would ask the network for those
        st.Page(training, title="Training Visualizations", default=True),
        st.Page(persona_study, title="Persona study"),
        st.Page(pods, title="Pods"),
    ]
    st.navigation(pages, position="top").run()
    load_plotly_ahead()


def load_plotly_ahead() -> None:
    """Have the browser load plotly.js (5 MB, a second of its time) once the first view is there and being read.

    It does so for a figure that nobody sees, or before that for the first one that somebody asks for.
    """

    @st.fragment(run_every=None if "plotly" in st.session_state else READING_SECONDS)
    def look() -> None:
        if "is_read" in st.session_state:
            st.session_state["plotly"] = True
            st.html("<style>:has(> .st-key-plotly) { display: none; }</style>")
            nothing: Any = {"data": [{"type": "pie"}]}
            st.container(key="plotly").plotly_chart(nothing)
        st.session_state["is_read"] = True

    if "plotly" not in st.session_state:
        look()


main()
