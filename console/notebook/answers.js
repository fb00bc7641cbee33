// Shows the text of `Answers` (answers.py) while the kernel has not handled a click in the box around it.

const BOX = ".qwen3vl-box";
const PATIENCE = 700;  // milliseconds

async function render({model: outer, el}) {
  const model = await outer.widget_manager.get_model(outer.get("shown").slice("IPY_MODEL_".length));
  const note = document.createElement("div");
  note.setAttribute("role", "status");
  note.style.cssText = "opacity:.75;font-size:13px";
  el.append(note);
  let timer = 0;

  // a page without a kernel shows the stored picture, one with it the widget
  const live = Boolean(model.comm_live);
  const style = document.createElement("style");
  function hide() {
    const stored = model.get("stored").map(mark => `.${mark}`).join(", ");
    style.textContent = live && stored ? `${stored} { display: none; }` : "";
  }
  document.head.append(style);
  hide();
  model.on("change:stored", hide);
  if (!live) requestAnimationFrame(() => { const box = el.closest(BOX); if (box) box.style.display = "none"; });

  function ask(event) {
    const wanted = event.type === "click" ? "button" : "input, select, textarea";
    const asked = event.target instanceof Element && event.target.closest(wanted);
    if (!asked || asked.closest(BOX) !== el.closest(BOX)) return;
    model.set("asked", model.get("asked") + 1);
    model.save_changes();
    clearTimeout(timer);
    timer = setTimeout(() => { note.textContent = model.get("text"); }, PATIENCE);
  }

  function press(event) {
    const box = el.closest(BOX), at = event.target;
    if (!box || !(at instanceof Element) || at.closest(BOX) !== box || event.ctrlKey || event.metaKey || event.altKey) return;
    if (at.closest("input:not([type=checkbox]), select, textarea")) return;
    const wanted = model.get("shortcuts")[event.key];
    const button = wanted && box.querySelector(wanted);
    if (!button) return;
    // before JupyterLab, for which these keys are commands
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!button.disabled) button.click();
  }

  function focus(event) {
    // a click anywhere in the box: its keys are of use from then on
    const box = el.closest(BOX);
    if (!box || !(event.target instanceof Element) || event.target.closest(BOX) !== box) return;
    box.tabIndex = -1;
    if (!event.target.closest("button, input, select, textarea, a")) setTimeout(() => box.focus({preventScroll: true}));
  }

  const hasKeys = Object.keys(model.get("shortcuts")).length > 0;
  if (hasKeys) window.addEventListener("keydown", press, true);
  if (hasKeys) document.addEventListener("click", focus, true);

  function answered() {
    if (model.get("answered") < model.get("asked")) return;
    clearTimeout(timer);
    note.textContent = "";
  }

  // on the document: when this is called, the box is not around the element yet
  for (const type of ["click", "change"]) document.addEventListener(type, ask, true);
  model.on("change:answered", answered);
  return () => {
    clearTimeout(timer);
    style.remove();
    window.removeEventListener("keydown", press, true);
    document.removeEventListener("click", focus, true);
    model.off("change:stored", hide);
    for (const type of ["click", "change"]) document.removeEventListener(type, ask, true);
    model.off("change:answered", answered);
  };
}

export default {render};
