"""Charts as Vega-Lite specs: plain dicts that page, report, notebook and export all draw."""
