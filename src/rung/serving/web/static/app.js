"use strict";
// A file that is chosen fills the field that its data-into names.
// Keys: a letter presses, follows or focuses what carries it in data-key; Ctrl+Enter submits; Escape leaves a field.
const inField = (element) => element.matches("input, textarea, select");

document.addEventListener("change", async (event) => {
  const into = event.target.dataset?.into, file = event.target.files?.[0];
  if (into && file) document.getElementById(into).value = await file.text();
});

document.addEventListener("keydown", (event) => {
  const at = event.target instanceof Element ? event.target : document.body;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    at.closest("form")?.querySelector("[data-submit]")?.click();
    return;
  }
  if (event.key === "Escape" && inField(at)) {
    at.blur();
    return;
  }
  if (inField(at) || event.ctrlKey || event.metaKey || event.altKey) return;
  const target = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === event.key);
  if (!target) return;
  event.preventDefault();
  if (inField(target)) {
    target.focus();
    target.select?.();
  } else {
    target.click();
  }
});

// A part of a page that is drawn again every few seconds keeps its focus, so that Tab goes on from there.
const stops = (root) => [...root.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")];
let stop = -1;

document.addEventListener("htmx:beforeSwap", (event) => {
  stop = document.activeElement.id ? -1 : stops(event.detail.target).indexOf(document.activeElement);
});

document.addEventListener("htmx:afterSettle", (event) => {
  if (stop >= 0) stops(event.detail.elt)[stop]?.focus({ preventScroll: true });
  stop = -1;
});
