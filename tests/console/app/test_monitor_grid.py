"""Small charts of the other metrics in the monitor, from 120 x 36."""

from __future__ import annotations

import pytest

from console.widgets.chart_grid import ChartGrid, SmallChart
from console.widgets.curve import Curve
from tests.console.app.driving import LARGE, SMALL, driven, looked, press, text_of, until


@pytest.mark.parametrize("size, theme", [(SMALL, "textual-dark"), ((120, 36), "textual-light"), (LARGE, "textual-dark")])
def test_other_metrics_have_small_charts_and_a_click_enlarges_one(store, size, theme):
    store.ended(store.finetune("one", 60))

    async def scene(pilot):
        app = pilot.app
        await press(pilot, "enter")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.view is not None and app.screen.view.metrics)
        await looked(pilot)
        charts = [chart for chart in app.screen.query(SmallChart) if chart.display and chart.parent.display]
        if size == SMALL:
            assert not charts, "a small terminal keeps its room for the curve"
            return
        names = [chart.metric for chart in charts]
        assert names[:3] == ["grad_norm", "lr", "tokens_per_second"] and "loss" not in names
        assert all(chart.size.width >= 20 and chart.size.height >= 5 for chart in charts)
        assert "grad norm  0.5167" in text_of(app) and "lr  1e-5" in text_of(app)
        await pilot.click(charts[0], offset=(10, 3))
        await until(pilot, lambda: app.screen.metric == "grad_norm" and app.screen.query_one("#curve", Curve).title.startswith("grad norm"))
        await looked(pilot)
        shown = [chart.metric for chart in app.screen.query(SmallChart) if chart.display]
        assert shown[0] == "loss" and "grad_norm" not in shown, "they change places"
        app.screen.query_one("#curve").focus()
        await press(pilot, "z")
        assert not app.screen.query_one(ChartGrid).display
        await press(pilot, "z")
        assert app.screen.query_one(ChartGrid).display

    driven(scene, store.app(), size, theme)
