"use strict";
(() => {
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const measures = {};
  let printing = false;

  const stored = (value) => {
    // A page opened from a file may not be allowed to remember anything.
    try {
      if (value !== undefined) localStorage.setItem("ecoserve-theme", value);
      return localStorage.getItem("ecoserve-theme");
    } catch {
      return null;
    }
  };
  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const LIGHT = { "--page": "#f6f7f9", "--ink": "#16202c", "--soft": "#51606f", "--line": "#d9dfe6", "--card": "#ffffff" };
  const paint = (name) => (printing && LIGHT[name]) || color(name);

  function axis(own) {
    return {
      gridcolor: paint("--line"), zerolinecolor: paint("--soft"), linecolor: paint("--line"), automargin: true,
      ...own, title: { ...(own || {}).title, font: { size: 13 } },
    };
  }

  function drawn(id) {
    const spec = structuredClone(specs[id]);
    const layout = spec.layout;
    const axes = (layout.meta || {}).measures;
    let range = null;
    if (axes) {
      const asked = measures[document.getElementById(id).dataset.figure];
      const key = axes[asked] ? asked : Object.keys(axes)[0];
      const { title, tickformat } = axes[key];
      if (layout.meta.axis === "y") {
        layout.yaxis = { ...layout.yaxis, title: { text: title }, tickformat };
      } else {
        range = axes[key].range;
        layout.xaxis = { title: { text: title }, range, tickformat, zeroline: false };
      }
      for (const trace of spec.data) if (trace.meta.by) Object.assign(trace, trace.meta.by[key] || { x: [], y: [] });
    }
    for (const trace of spec.data) {
      const own = color(`--slot-${trace.meta.slot}`);
      if (range) {
        if (Array.isArray(trace.x)) trace.x = trace.x.map((x) => (x === "low" ? range[0] : x === "high" ? range[1] : x));
      }
      if (trace.type === "bar") {
        trace.marker = { ...trace.marker, color: own, line: { width: 0 } };
        if (trace.marker.pattern) Object.assign(trace.marker.pattern, { fillmode: "overlay", fgcolor: paint("--card"), fgopacity: 0.75, size: 7, solidity: 0.3 });
        continue;
      }
      if (trace.type === "heatmap") {
        trace.colorscale = trace.meta.diverging
          ? [[0, color("--good")], [0.5, paint("--page")], [1, color("--bad")]]
          : [[0, paint("--page")], [1, own]];
        continue;
      }
      if (trace.meta.band) {
        trace.fillcolor = own;
        trace.opacity = 0.1;
        continue;
      }
      if (trace.line || trace.mode.includes("lines")) trace.line = { ...trace.line, color: own };
      if (trace.mode.includes("markers")) {
        trace.marker = { ...trace.marker, color: own, line: { ...(trace.marker || {}).line, color: own } };
      }
      for (const error of ["error_x", "error_y"]) if (trace[error]) trace[error].color = own;
    }
    Object.assign(layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: paint("--ink") },
      hoverlabel: { bgcolor: paint("--card"), bordercolor: paint("--soft"), font: { color: paint("--ink"), size: 13 }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: paint("--soft"), activecolor: paint("--ink") },
      xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
    });
    layout.height = layout.height || 330;
    if (printing) {
      // The page is laid out for paper only after this, so the widths of its columns are said here (A4 and Letter).
      layout.autosize = false;
      layout.width = document.getElementById(id).closest(".panels").classList.contains("wide") ? 670 : 325;
    }
    return [spec.data, layout];
  }

  const CONFIG = {
    responsive: true, displaylogo: false, scrollZoom: false,
    modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]],
  };
  function draw() {
    for (const id of Object.keys(specs)) Plotly.react(id, ...drawn(id), CONFIG);
  }

  const button = document.getElementById("theme");
  function show() {
    button.textContent = theme() === "dark" ? "Light theme" : "Dark theme";
    draw();
  }
  const kept = stored();
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    stored(root.dataset.theme);
    show();
  });
  dark.addEventListener("change", show);
  for (const label of document.querySelectorAll(".measure")) {
    label.hidden = false;
    const select = label.querySelector("select");
    select.addEventListener("change", () => {
      // One choice for all plots that have the same, so that they can be read side by side.
      const choices = (one) => [...one.options].map((option) => option.value).join();
      for (const other of document.querySelectorAll(".measure select")) {
        if (choices(other) !== choices(select)) continue;
        other.value = select.value;
        measures[other.dataset.figure] = select.value;
      }
      draw();
    });
  }
  const print = (on) => () => {
    printing = on;
    draw();
    if (!on) for (const id of Object.keys(specs)) Plotly.Plots.resize(id);
  };
  window.addEventListener("beforeprint", print(true));
  window.addEventListener("afterprint", print(false));
  show();
})();
