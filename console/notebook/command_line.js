// Draws `CommandLine` (command_line.py). A page without TLS has no clipboard: there the text is selected and copied as by Ctrl-C.

function selectAll(element) {
  const range = document.createRange();
  range.selectNodeContents(element);
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
}

async function render({model: outer, el}) {
  const model = await outer.widget_manager.get_model(outer.get("shown").slice("IPY_MODEL_".length));
  const line = document.createElement("code");
  line.style.cssText = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:12px;flex:1 1 0;user-select:all";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "jupyter-widgets jupyter-button widget-button";
  button.style.cssText = "width:auto;flex:none";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy the command");
  const row = document.createElement("div");
  row.style.cssText = "display:flex;gap:8px;align-items:flex-start";
  row.append(line, button);
  el.append(row);

  const show = () => { line.textContent = model.get("text"); };
  let timer = 0;
  button.addEventListener("click", async () => {
    let done = false;
    try {
      await navigator.clipboard.writeText(model.get("text"));
      done = true;
    } catch {
      selectAll(line);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Selected: press Ctrl-C";
    clearTimeout(timer);
    timer = setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  model.on("change:text", show);
  show();
  return () => {
    clearTimeout(timer);
    model.off("change:text", show);
  };
}

export default {render};
