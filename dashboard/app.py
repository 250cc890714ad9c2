"""The script that Streamlit runs: the frame around every view."""

from html import escape
from pathlib import Path

import streamlit as st

from dashboard import going, sidebar
from dashboard.views import VIEWS
from deconvoy.errors import DeconvoyError

STYLE = Path(__file__).with_name("style.css")


def main() -> None:
    st.set_page_config(page_title="Deconvoy", page_icon="◉", layout="wide")
    st.html(STYLE)
    pages = {
        name: st.Page(show, title=title, url_path=name or None, default=not name)
        for name, (title, show) in VIEWS.items()
    }
    page = st.navigation(list(pages.values()), position="hidden")
    going.begin(pages)
    try:
        sidebar.show(page.url_path, st.query_params.get("run"))
        page.run()
    except DeconvoyError as error:
        tell(error)


def tell(error: DeconvoyError) -> None:
    """An error as its sentence."""
    st.html(f'<p class="refusal" role="alert">{escape(str(error))}</p>')


if __name__ == "__main__":
    main()
