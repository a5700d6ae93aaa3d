"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const views = {};
  let chosen = null;

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // The page's own colours, whichever of light and dark it has.
  const theme = () => {
    const text = style("--text"), soft = style("--soft"), line = style("--line");
    return {
      background: "transparent", view: { stroke: line }, text: { color: text }, rule: { color: soft }, title: { color: text },
      axis: { labelColor: soft, titleColor: text, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 11, titleFontSize: 12 },
      legend: { labelColor: soft, titleColor: text }, header: { labelColor: text, titleColor: text, labelFontSize: 12 },
    };
  };

  const shown = (value) => {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return String(value);
    return Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
  };

  const table = (headings, rows, caption) => {
    const made = document.createElement("table");
    if (caption) made.createCaption().textContent = caption;
    const head = made.createTHead().insertRow();
    for (const heading of headings) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = heading;
      head.append(cell);
    }
    const body = made.createTBody();
    for (const { cells, differs } of rows) {
      const row = body.insertRow();
      if (differs) row.className = "differs";
      for (const value of cells) {
        const cell = row.insertCell();
        cell.textContent = shown(value);
        if (typeof value === "number") cell.className = "number";
      }
    }
    return made;
  };

  // One plan: marked in the chart, its button pressed, its table of layers and schemes below.
  const choose = (id) => {
    const plan = data.plans.find((row) => row.id === id);
    if (!plan) return;
    chosen = id;
    if (views.front) views.front.signal("chosen", id).run();
    for (const button of document.querySelectorAll("button[data-plan]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.plan) === id));
    }
    const rows = data.groups.map((group, place) => ({
      cells: [group.group, group.layers.join(" ") === group.group ? "" : group.layers.join(" "), plan.schemes[place], data.plan[place]],
      differs: data.plan[place] !== null && plan.schemes[place] !== data.plan[place],
    }));
    const others = rows.filter((row) => row.differs).length;
    const against = plan.mine ? "this is the plan of the run" : `${others} groups differ from this plan, in bold`;
    const box = document.createElement("div");
    box.className = "scroll";
    box.append(table(["group", "layers", `plan ${id}`, "this plan"], rows, `Plan ${id}: layers and schemes (${against})`));
    document.getElementById("plan").replaceChildren(box);
  };

  const find = (layer) => {
    const row = [...document.querySelectorAll("tr[data-layers]")].find((one) => one.dataset.layers.split(" ").includes(layer));
    if (!row) return;
    for (const other of document.querySelectorAll("tr.here")) other.classList.remove("here");
    row.classList.add("here");
    row.scrollIntoView({ block: "center" });
    row.focus({ preventScroll: true });
  };

  const draw = async (name) => {
    const options = {
      mode: "vega-lite", renderer: "svg", config: theme(), actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: `quantkit-${name}`, tooltip: { theme: "custom" },
    };
    if (views[name]) views[name].finalize();
    const { view } = await vegaEmbed(`#chart-${name}`, data.charts[name], options);
    views[name] = view;
    view.addEventListener("click", (_, item) => {
      const datum = item && item.datum;
      if (!datum) return;
      if (name === "front" && datum.id !== undefined) choose(datum.id);
      if (name === "network" && datum.operation !== undefined) find(datum.operation);
    });
  };

  const drawAll = async () => {
    for (const name of Object.keys(data.charts)) await draw(name);
    if (chosen !== null) choose(chosen);
  };

  for (const button of document.querySelectorAll("button[data-plan]")) {
    button.addEventListener("click", () => choose(Number(button.dataset.plan)));
  }
  for (const details of document.querySelectorAll("details[data-numbers]")) {
    details.addEventListener("toggle", () => {
      if (details.childElementCount > 1) return;
      const rows = data.numbers[details.dataset.numbers], keys = Object.keys(rows[0]);
      const box = document.createElement("div");
      box.className = "scroll";
      box.append(table(keys, rows.map((row) => ({ cells: keys.map((key) => row[key]) }))));
      details.append(box);
    });
  }
  dark.addEventListener("change", drawAll);
  const first = data.plans.find((row) => row.mine) || data.plans[0];
  if (first) choose(first.id);
  drawAll().then(() => { document.body.dataset.ready = "yes"; });
})();
