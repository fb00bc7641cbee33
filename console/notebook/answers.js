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
    model.off("change:stored", hide);
    for (const type of ["click", "change"]) document.removeEventListener(type, ask, true);
    model.off("change:answered", answered);
  };
}

export default {render};
