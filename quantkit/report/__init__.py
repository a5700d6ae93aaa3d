"""Reports of a run directory: nothing here needs the network, the data or torch, and nothing is measured.

run_data.py    all that a run holds, read back
explain.py     why a layer has its scheme                  comparison.py  what changed between two runs, and what it did
charts.py      the charts of plans, as Vega-Lite           layers.py      the charts of layers
network.py     the network laid out and drawn
page.py        the HTML page (page.css, page.js)           plots.py       the charts as PNG and SVG
markdown.py    the same in short, for a pull request       format.py      numbers and verdicts as text
"""
