// Turns what pymdownx.arithmatex marked as TeX into MathML, without a network connection.
function renderMath() {
  for (const element of document.querySelectorAll(".arithmatex:not([data-rendered])")) {
    const tex = element.textContent.trim().replace(/^\\[([]|\\[)\]]$/g, "");
    temml.render(tex, element, { displayMode: element.tagName === "DIV", throwOnError: false, wrap: "none" });
    element.dataset.rendered = "";
  }
}
if (typeof document$ !== "undefined") document$.subscribe(renderMath);
else document.addEventListener("DOMContentLoaded", renderMath);
