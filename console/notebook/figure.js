// Draws the state of `Shown` (figure.py) with plotly.js. anywidget loads this in a moment; plotly.js takes its time.

const libraries = (globalThis[Symbol.for("qwen3vl.plotly")] ??= new Map());
const asked = (globalThis[Symbol.for("qwen3vl.plotly asked")] ??= new Map());

/** plotly.js from the kernel, evaluated once a page and version, without touching the page's own `Plotly`. */
async function load(library) {
  const version = library.get("version");
  if (!libraries.has(version)) {
    // for each kernel, as one that has ended never answers
    if (!asked.has(library.model_id)) asked.set(library.model_id, ask(library).then(evaluate));
    const loaded = await asked.get(library.model_id);
    if (!libraries.has(version)) libraries.set(version, loaded);
  }
  return libraries.get(version);
}

async function evaluate(code) {
  const before = "const module = {exports: {}}, own = window.Plotly;\n";
  const after = "\nwindow.Plotly = own;\nexport default module.exports;";
  const address = URL.createObjectURL(new Blob([before, code, after], {type: "text/javascript"}));
  try {
    return (await import(address)).default;
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** The text of plotly.js, which the kernel sends when no cell is running. */
function ask(library) {
  if (!library.comm_live) return Promise.reject(new Error("there is no kernel"));
  return new Promise((resolve, reject) => {
    function got(content, buffers) {
      if (content.version !== library.get("version")) return;
      library.off("msg:custom", got);
      const packed = new Blob([buffers[0]]).stream().pipeThrough(new DecompressionStream("gzip"));
      new Response(packed).text().then(resolve, reject);
    }
    library.on("msg:custom", got);
    library.send({ask: "code"}, {});
  });
}

/** [r, g, b] of the ground behind an element: of the first one around it that has a ground. */
function ground(element) {
  for (let each = element; each; each = each.parentElement) {
    const parts = getComputedStyle(each).backgroundColor.match(/[\d.]+/g)?.map(Number);
    if (parts && parts.length >= 3 && (parts[3] ?? 1) > 0.5) return parts.slice(0, 3);
  }
  return [255, 255, 255];
}

/** The layout in the colours of the page, light or dark. */
function themed(axes, element) {
  const [red, green, blue] = ground(element);
  const paper = `rgb(${red}, ${green}, ${blue})`;
  const dark = 0.299 * red + 0.587 * green + 0.114 * blue < 128;
  const ink = dark ? "#dddddd" : "#333333";
  const grid = dark ? "rgba(255, 255, 255, 0.14)" : "rgba(0, 0, 0, 0.10)";
  const axis = {gridcolor: grid, zerolinecolor: grid, linecolor: grid};
  return {
    ...axes, paper_bgcolor: paper, plot_bgcolor: paper, font: {...axes.font, color: ink},
    xaxis: {...axes.xaxis, ...axis}, yaxis: {...axes.yaxis, ...axis}, hoverlabel: {...axes.hoverlabel, bgcolor: paper, bordercolor: grid, font: {color: ink}},
    modebar: {bgcolor: "rgba(0, 0, 0, 0)", color: dark ? "#999999" : "#888888", activecolor: ink},
  };
}

async function render({model, el}) {
  const child = reference => model.widget_manager.get_model(reference.slice("IPY_MODEL_".length));
  const plot = document.createElement("div");
  plot.style.minHeight = "100px";
  el.append(plot);
  const shown = await child(model.get("shown"));
  let plotly;
  plot.textContent = "the curve is drawn as soon as the kernel runs no cell";
  try {
    plotly = await load(await child(shown.get("library")));
  } catch (error) {
    plot.textContent = `plotly.js could not be loaded (${error}); reload the page`;
    return;
  }
  plot.textContent = "";
  let drawn = false, busy = false, again = false, ended = false, width = 0;

  async function draw() {
    if (busy) {
      again = true;
      return;
    }
    // out of sight there is nothing to measure; under the mouse a new drawing would end the drag
    if (ended || !plot.isConnected || !plot.offsetWidth) {
      width = 0;  // drawn when it is seen again
      return;
    }
    if (plot._dragging) {
      schedule();
      return;
    }
    busy = true;
    try {
      width = plot.offsetWidth;
      const axes = themed(structuredClone(shown.get("axes")), el);
      await plotly.react(plot, structuredClone(shown.get("data")), axes, {...shown.get("config")});
      if (!drawn) {
        drawn = true;
        plot.on("plotly_relayout", tell);
        const window = shown.get("window");
        if (window) await plotly.relayout(plot, {"xaxis.range": [...window]});
      }
    } finally {
      busy = false;
      if (again) {
        again = false;
        schedule();
      }
    }
  }

  let waiting = 0;
  function schedule() {
    if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; draw(); });
  }

  /** Tell the kernel what is in view, so that it sends the points of that. */
  function tell() {
    const {autorange, range} = plot.layout.xaxis;
    const window = autorange || !range ? null : range.map(Number);
    if (JSON.stringify(window) !== JSON.stringify(shown.get("window"))) {
      shown.set("window", window);
      shown.save_changes();
    }
  }

  const size = new ResizeObserver(() => {
    if (!plot.offsetWidth) width = 0;
    else if (plot.offsetWidth !== width) schedule();
  });
  size.observe(plot);
  const theme = new MutationObserver(() => setTimeout(schedule, 200));  // the style sheet follows the sign
  theme.observe(document.body, {attributes: true});
  shown.on("change:data change:axes change:config", schedule);
  schedule();
  return () => {
    ended = true;
    size.disconnect();
    theme.disconnect();
    shown.off("change:data change:axes change:config", schedule);
    plotly.purge(plot);
  };
}

export default {render};
