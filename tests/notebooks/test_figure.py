"""A figure's state is always complete, even if messages about its changes are lost."""

from __future__ import annotations

import base64
import gzip

import ipywidgets
import numpy as np
from plotly.graph_objects import FigureWidget

from console.notebook.figure import Figure, FigureState, Library


def ys(figure: Figure) -> list[list[float]]:
    """The heights of each trace, as the page gets them."""
    return [np.frombuffer(base64.b64decode(trace["y"]["bdata"]), trace["y"]["dtype"]).tolist() for trace in figure.shown.data]


def test_every_change_is_in_the_state_that_a_late_page_finds():
    figure = Figure(layout={"uirevision": "keep"}, config={"displaylogo": False})
    assert isinstance(figure, FigureWidget) and figure.shown.config == {"displaylogo": False}
    assert figure.shown.data == [] and figure.shown.axes["uirevision"] == "keep"
    figure.add_scatter(x=np.arange(3), y=np.array([1.0, 2.0, 3.0]))
    figure.add_scatter(x=np.arange(3), y=np.array([4.0, 5.0, 6.0]))
    with figure.batch_update():
        figure.data[0].y = np.array([7.0, 8.0, 9.0])
        figure.layout.yaxis.type = "log"
    assert ys(figure) == [[7.0, 8.0, 9.0], [4.0, 5.0, 6.0]] and figure.shown.axes["yaxis"]["type"] == "log"
    figure.data = figure.data[::-1]
    assert ys(figure) == [[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]
    figure.data = figure.data[:1]
    figure.add_hline(y=2)
    assert ys(figure) == [[4.0, 5.0, 6.0]] and figure.shown.axes["shapes"][0]["y0"] == 2


def test_a_gap_stays_a_gap_in_the_page():
    figure = Figure([{"x": np.array([1, 2, 3]), "y": np.array([1.0, np.nan, 3.0])}])
    assert np.isnan(ys(figure)[0]).tolist() == [False, True, False]


def test_simultaneous_changes_are_one_message(monkeypatch):
    figure, sent = Figure(), []
    monkeypatch.setattr(FigureState, "_send", lambda self, message, buffers=None: sent.append(message["state"]))
    with figure.batched_updates():
        figure.add_scatter(y=[1.0])
        figure.data = ()
        figure.add_scatter(y=[2.0])
        figure.layout.title = "both"
    assert len(sent) == 1 and sent[0]["data"][0]["y"] == [2.0] and sent[0]["axes"]["title"]["text"] == "both"
    figure.layout.title = "both"
    assert len(sent) == 1


def test_the_zoom_of_the_page_is_the_window_and_goes_before_the_layouts_range():
    figure = Figure()
    assert figure.window is None
    figure.layout.xaxis.range = (1, 9)
    assert figure.window == (1.0, 9.0)
    figure.shown.window = [2, 3]
    assert figure.window == (2.0, 3.0) and figure.layout.xaxis.range == (1, 9)


def test_plotlys_code_is_sent_to_a_page_that_asks_and_is_in_no_state(monkeypatch):
    one, two = Figure(), Figure()
    library, sent = one.shown.library, []
    assert library is two.shown.library and len(one._esm) < 10_000
    assert len(str(library.get_state())) < 1000
    monkeypatch.setattr(Library, "_send", lambda self, message, buffers=None: sent.append((message, buffers)))
    library._handle_custom_msg({"ask": "code"}, [])
    ((message, (code,)),) = sent
    assert message["content"] == {"version": library.version} and len(code) < 3_000_000
    assert library.version in gzip.decompress(code).decode()[:200]
    ipywidgets.Widget.close_all()
    assert Figure().shown.library.comm is not None


def test_a_closed_figure_leaves_only_the_shared_code():
    kept = Figure()
    before = set(ipywidgets.widgets.widget._instances)
    Figure().close()
    assert set(ipywidgets.widgets.widget._instances) <= before | {kept.shown.library.model_id}
